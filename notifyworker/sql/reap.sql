-- running -> pending, or -> failed with E-RUN-002 on the last attempt: for runs whose lease has expired, or whose
-- worker is presumed dead. What a heartbeat renews while this looks is not taken: the conditions hold again under the
-- row's lock.
-- $1 limit, $2 the reaper's lease_owner, $3 owners presumed dead (an owner is taken from only if its advisory lock is
-- gone in this very statement), $4 the key space: 'schema' of presence.sql
WITH dead AS (
    SELECT owner
      FROM unnest($3::text[]) AS owner
     WHERE NOT EXISTS (
        SELECT FROM pg_locks AS l
         WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
           AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
           AND (l.classid::bigint << 32) | l.objid::bigint = hashtextextended($4 || owner, 0))
), taken AS MATERIALIZED (
    SELECT r.run_id, r.kind, r.project_id, r.attempt, r.lease_owner, r.attempt >= r.max_attempts AS is_last, r.started_at,
           r.lease_expires_at > now() AS was_alive, r.is_limited
      FROM {schema}.runs AS r
     WHERE r.lease_expires_at IS NOT NULL
       AND (r.lease_expires_at <= now() OR r.lease_owner IN (SELECT owner FROM dead))
     ORDER BY r.lease_expires_at
     LIMIT $1
       FOR UPDATE OF r SKIP LOCKED
), entry AS (
    SELECT jsonb_object_agg(run_id, jsonb_build_object('attempt', attempt, 'code', 'E-RUN-002', 'worker', lease_owner,
               'traceback', NULL, 'started_at', to_char(started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
               'message', CASE WHEN was_alive
                   THEN 'the worker is gone: its session has ended' ELSE 'the lease expired' END)) AS of_run
      FROM taken
), back AS (
    UPDATE {schema}.runs AS r
       SET state = 'pending', lease_owner = NULL, lease_expires_at = NULL, started_at = NULL, is_limited = false,
           errors = {schema}.with_error(r.errors, (SELECT of_run FROM entry) -> r.run_id::text),
           is_shadow = r.is_shadow AND r.shadow_by IS DISTINCT FROM 'worker', shadow_by = nullif(r.shadow_by, 'worker')
     -- Arrays and not joins: while statistics say that the table is empty, a join may read all of it instead.
     WHERE r.run_id = ANY (array(SELECT run_id FROM taken WHERE NOT is_last))
    RETURNING r.run_at
), gone AS (
    DELETE FROM {schema}.runs WHERE run_id = ANY (array(SELECT run_id FROM taken WHERE is_last)) RETURNING *
), failed AS (
    INSERT INTO {schema}.run_history (run_id, replay_of, run_at, created_at, expires_at, started_at, lease_token, timeout,
        priority, max_attempts, attempt, is_shadow, state, kind, project_id, shadow_by, idempotency_key,
        concurrency_key, error_code, payload, headers, errors, progress)
    SELECT run_id, replay_of, run_at, created_at, expires_at, started_at, lease_token, timeout,
        priority, max_attempts, attempt, is_shadow, 'failed', kind, project_id, shadow_by, idempotency_key,
        concurrency_key, 'E-RUN-002', payload, headers,
        {schema}.with_error(errors, (SELECT of_run FROM entry) -> run_id::text), progress
      FROM gone
), freed AS (
    -- By a look-up for each that has places at all, and not by a join, which may read all places for none.
    DELETE FROM {schema}.places AS p
     WHERE p.ctid = ANY (array(
        SELECT held.place_at FROM taken AS r, LATERAL (
            SELECT h.ctid AS place_at FROM {schema}.places AS h WHERE h.run_id = r.run_id AND NOT h.lingers OFFSET 0) AS held
         WHERE r.is_limited))
), log AS (
    INSERT INTO {schema}.reaps (run_id, kind, project_id, attempt, taken_from, taken_by, reason, became)
    SELECT run_id, kind, project_id, attempt, lease_owner, $2,
           CASE WHEN was_alive THEN 'presumed_dead' ELSE 'lease_expired' END,
           CASE WHEN is_last THEN 'failed' ELSE 'pending' END
      FROM taken
    RETURNING run_id, taken_from, reason, became
)
SELECT run_id, taken_from, reason, became,
       CASE WHEN became = 'pending' THEN (SELECT {schema}.announce((SELECT min(run_at) FROM back))) END AS announced,
       (SELECT CASE WHEN EXISTS (SELECT FROM {schema}.waiters) THEN {schema}.tell_waiters(array(SELECT run_id FROM gone)) IS NULL END) AS told
  FROM log
