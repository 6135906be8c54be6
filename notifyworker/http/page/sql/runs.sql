-- A page of runs, newest first, without what may be big. Nothing here reads without end: what no index finds is looked for
-- among the next $10 live and $10 settled runs, and `edge` is the id down to which all was looked at (null: to the end).
-- $1 state, $2 kind, $3 project_id, $4 worker, $5 is_shadow, $6 inserted from, $7 inserted until, $8 text, $9 below this id,
-- $10 how far (null where an index finds all), $11 limit. All but the last may be null.
WITH edges AS MATERIALIZED (
    SELECT CASE WHEN $10::bigint IS NOT NULL THEN greatest(
        (SELECT r.run_id FROM {schema}.runs AS r WHERE $9::uuid IS NULL OR r.run_id < $9
          ORDER BY r.run_id DESC OFFSET $10::bigint LIMIT 1),
        (SELECT h.run_id FROM {schema}.run_history AS h WHERE $9::uuid IS NULL OR h.run_id < $9
          ORDER BY h.run_id DESC OFFSET $10::bigint LIMIT 1)) END AS edge
), held AS (  -- few, and found by their index
    SELECT run_id, project_id, kind, state, run_at, attempt, max_attempts, is_shadow, lease_owner, lease_expires_at, created_at,
           started_at, NULL::timestamptz AS finished_at, NULL::text AS error_code, NULL::text AS settled_by,
           errors -> -1 AS error, progress, NULL::text AS result
      FROM {schema}.runs
     WHERE $1::text = 'running' AND lease_expires_at IS NOT NULL
       AND ($9::uuid IS NULL OR run_id < $9) AND ($2::text IS NULL OR kind = $2) AND ($3::text IS NULL OR project_id = $3)
       AND ($4::text IS NULL OR lease_owner = $4) AND ($5::boolean IS NULL OR is_shadow = $5)
       AND ($6::timestamptz IS NULL OR created_at >= $6) AND ($7::timestamptz IS NULL OR created_at < $7)
       AND ($8::text IS NULL OR strpos(payload::text, $8) > 0 OR strpos(errors::text, $8) > 0 OR idempotency_key = $8
            OR concurrency_key = $8)
     ORDER BY run_id DESC LIMIT $11
), live AS (
    SELECT run_id, project_id, kind, state, run_at, attempt, max_attempts, is_shadow, lease_owner, lease_expires_at, created_at,
           started_at, NULL::timestamptz AS finished_at, NULL::text AS error_code, NULL::text AS settled_by,
           errors -> -1 AS error, progress, NULL::text AS result
      FROM {schema}.runs
     WHERE ($1::text IS NULL OR ($1 = 'pending' AND state = 'pending'))
       AND run_id >= coalesce((SELECT edge FROM edges), '00000000-0000-0000-0000-000000000000')
       AND ($9::uuid IS NULL OR run_id < $9) AND ($2::text IS NULL OR kind = $2) AND ($3::text IS NULL OR project_id = $3)
       AND ($4::text IS NULL OR lease_owner = $4) AND ($5::boolean IS NULL OR is_shadow = $5)
       AND ($6::timestamptz IS NULL OR created_at >= $6) AND ($7::timestamptz IS NULL OR created_at < $7)
       AND ($8::text IS NULL OR strpos(payload::text, $8) > 0 OR strpos(errors::text, $8) > 0 OR idempotency_key = $8
            OR concurrency_key = $8)
     ORDER BY run_id DESC LIMIT $11
), settled AS (
    SELECT run_id, project_id, kind, state, run_at, attempt, max_attempts, is_shadow, NULL::text, NULL::timestamptz, created_at,
           started_at, finished_at, error_code, settled_by, errors -> -1, progress,
           CASE WHEN pg_column_size(result) < 2000 THEN left(result::text, 300) END
      FROM {schema}.run_history
     WHERE ($1::text IS NULL OR ($1 IN ('completed', 'failed', 'cancelled') AND state = $1))
       AND run_id >= coalesce((SELECT edge FROM edges), '00000000-0000-0000-0000-000000000000')
       AND ($9::uuid IS NULL OR run_id < $9) AND ($2::text IS NULL OR kind = $2) AND ($3::text IS NULL OR project_id = $3)
       AND ($4::text IS NULL OR settled_by = $4) AND ($5::boolean IS NULL OR is_shadow = $5)
       AND ($6::timestamptz IS NULL OR created_at >= $6) AND ($7::timestamptz IS NULL OR created_at < $7)
       AND ($8::text IS NULL OR strpos(payload::text, $8) > 0 OR strpos(errors::text, $8) > 0 OR idempotency_key = $8
            OR concurrency_key = $8)
     ORDER BY run_id DESC LIMIT $11
)
SELECT found.*, edges.edge
  FROM edges LEFT JOIN (SELECT * FROM held UNION ALL SELECT * FROM live UNION ALL SELECT * FROM settled
                         ORDER BY run_id DESC LIMIT $11) AS found ON true
 ORDER BY found.run_id DESC
