-- running -> completed, failed or cancelled: the rows move to the history. Returns the runs that it settled; one that
-- is missing was locked by somebody for a moment, or is lost (held.sql tells which).
-- $1 lease_owner, then an element a run: $2 run_id, $3 lease_token, $4 state, $5 result, $6 effects, $7 error_code,
-- $8 entry for errors, $9 whether it was ever started
WITH outcome AS (
    SELECT * FROM unnest($2::uuid[], $3::bigint[], $4::text[], $5::jsonb[], $6::jsonb[], $7::text[], $8::jsonb[],
        $9::boolean[]) AS o (run_id, lease_token, state, result, effects, error_code, error, was_started)
), mine AS MATERIALIZED (
    SELECT r.run_id
      FROM outcome AS o, LATERAL (
          SELECT r.run_id
            FROM {schema}.runs AS r
           WHERE r.run_id = o.run_id AND r.lease_token = o.lease_token AND r.lease_owner = $1 AND r.state = 'running'
             FOR UPDATE SKIP LOCKED) AS r
), gone AS (
    DELETE FROM {schema}.runs WHERE run_id = ANY (array(SELECT run_id FROM mine)) RETURNING *
)
INSERT INTO {schema}.run_history (run_id, run_at, created_at, expires_at, started_at, finished_at, lease_token, timeout,
    priority, max_attempts, attempt, is_shadow, state, kind, project_id, settled_by, shadow_by, idempotency_key,
    concurrency_key, error_code, payload, headers, errors, progress, result, effects)
SELECT g.run_id, g.run_at, g.created_at, g.expires_at, CASE WHEN o.was_started THEN g.started_at END, now(),
       g.lease_token, g.timeout, g.priority, g.max_attempts, g.attempt - (NOT o.was_started)::int, g.is_shadow, o.state,
       g.kind, g.project_id, g.lease_owner, g.shadow_by, g.idempotency_key, g.concurrency_key, o.error_code, g.payload,
       g.headers, CASE WHEN o.error IS NULL THEN g.errors ELSE {schema}.with_error(g.errors, o.error) END, g.progress,
       o.result, o.effects
  FROM gone AS g JOIN outcome AS o ON o.run_id = g.run_id
RETURNING run_id
