-- running -> completed, failed or cancelled: the rows move to the history. Returns how many it settled: naming each costs
-- a twentieth of a settle, and is nearly always the same as all. Of what is missing, settled.sql tells which were
-- settled, and held.sql whether the others were locked by somebody for a moment or are lost.
-- $1 lease_owner, then an element a run: $2 run_id, $3 lease_token, $4 state, $5 result, $6 effects, $7 error_code,
-- $8 entry for errors, $9 whether it was ever started, $10 its last progress, where that is not in its row yet. Those from
-- $4 on are empty where they are the same for all: completed, null, and started.
WITH mine AS MATERIALIZED (
    -- The outcome is carried along from step to step: joined again at the end, it would be searched once a run.
    SELECT r.ctid AS place, coalesce(o.state, 'completed') AS became, o.result, o.effects, o.error_code, o.error,
           coalesce(o.was_started, true) AS was_started, o.progress
      FROM unnest($2::uuid[], $3::bigint[], $4::text[], $5::jsonb[], $6::jsonb[], $7::text[], $8::jsonb[], $9::boolean[],
              $10::jsonb[]) AS o (run_id, lease_token, state, result, effects, error_code, error, was_started, progress), LATERAL (
          SELECT r.ctid
            FROM {schema}.runs AS r
           WHERE r.run_id = o.run_id AND r.lease_token = o.lease_token AND r.lease_owner = $1 AND r.state = 'running'
             FOR UPDATE SKIP LOCKED) AS r
), gone AS (
    DELETE FROM {schema}.runs AS r USING mine
     WHERE r.ctid = mine.place AND CASE WHEN r.state = 'running' THEN true END
    RETURNING r.*, mine.became, mine.result, mine.effects, mine.error_code, mine.error, mine.was_started, mine.progress AS last_progress
), freed AS (
    -- By a look-up for each that has places at all, and not by a join, which may read all places for none.
    DELETE FROM {schema}.places AS p
     WHERE p.ctid = ANY (array(
        SELECT held.place_at FROM gone AS r, LATERAL (
            SELECT h.ctid AS place_at FROM {schema}.places AS h WHERE h.run_id = r.run_id AND NOT h.lingers OFFSET 0) AS held
         WHERE r.is_limited))
), kept AS (
    INSERT INTO {schema}.run_history (run_id, replay_of, run_at, created_at, expires_at, started_at, finished_at, lease_token, timeout,
        priority, max_attempts, attempt, is_shadow, state, kind, project_id, settled_by, shadow_by, idempotency_key,
        concurrency_key, error_code, payload, headers, errors, progress, result, effects)
    SELECT run_id, replay_of, run_at, created_at, expires_at, CASE WHEN was_started THEN started_at END, now(), lease_token, timeout,
           priority, max_attempts, attempt - (NOT was_started)::int, is_shadow, became, kind, project_id, lease_owner,
           shadow_by, idempotency_key, concurrency_key, error_code, payload, headers,
           CASE WHEN error IS NULL THEN errors ELSE {schema}.with_error(errors, error
               || jsonb_build_object('started_at', to_char(started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))) END,
           coalesce(last_progress, progress), result, effects
      FROM gone
    RETURNING 1
)
SELECT count(*),
       CASE WHEN EXISTS (SELECT FROM {schema}.waiters) THEN {schema}.tell_waiters(array(SELECT run_id FROM gone)) IS NULL END AS told,
       CASE WHEN EXISTS (SELECT FROM {schema}.mirrors) THEN (
           SELECT {schema}.mirror(array_agg(r.run_id), array_agg(r.kind), array_agg(r.project_id)) IS NULL
             FROM gone AS r
            WHERE r.kind = ANY (array(SELECT m.kind FROM {schema}.mirrors AS m)) AND NOT r.is_shadow AND r.became <> 'cancelled'
              AND {schema}.part_of(r.run_id) < (SELECT max(m.percent) FROM {schema}.mirrors AS m)
           HAVING count(*) > 0) END AS mirrored
  FROM kept
