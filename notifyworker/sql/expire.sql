-- pending -> cancelled for runs that may no longer be started, whether or not any worker serves their kind.
-- $1 limit
WITH late AS MATERIALIZED (
    SELECT r.run_id FROM {schema}.runs AS r
     WHERE r.expires_at <= now() AND r.state = 'pending' ORDER BY r.expires_at LIMIT $1 FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM {schema}.runs WHERE run_id = ANY (array(SELECT run_id FROM late)) RETURNING *
)
INSERT INTO {schema}.run_history (run_id, replay_of, run_at, created_at, expires_at, lease_token, timeout,
    priority, max_attempts, attempt, is_shadow, state, kind, project_id, shadow_by, idempotency_key,
    concurrency_key, payload, headers, errors, progress)
SELECT run_id, replay_of, run_at, created_at, expires_at, lease_token, timeout,
       priority, max_attempts, attempt, is_shadow, 'cancelled', kind, project_id, shadow_by, idempotency_key,
       concurrency_key, payload, headers,
       {schema}.with_error(errors, jsonb_build_object('attempt', attempt, 'code', 'expired',
           'message', 'expires_at passed before it was started', 'traceback', NULL, 'worker', NULL)), progress
  FROM gone
-- It may have been its turn for a key.
RETURNING run_id, CASE WHEN concurrency_key IS NOT NULL THEN {schema}.end_wait(project_id, concurrency_key, 1) END AS ended,
    (SELECT CASE WHEN EXISTS (SELECT FROM {schema}.waiters) THEN {schema}.tell_waiters(array(SELECT run_id FROM gone)) IS NULL END) AS told,
    (SELECT {schema}.cancel_children(array(SELECT run_id FROM gone))) AS children
