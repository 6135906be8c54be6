-- $1.. the producer's columns, and $14.. what enqueue does about a run of the same idempotency key
WITH fresh AS MATERIALIZED (
    SELECT coalesce($13::uuid, {schema}.uuid7()) AS run_id
), given AS (
    SELECT fresh.run_id AS fresh_id,
           {schema}.enqueue(kind => $1, payload => $2::jsonb, project_id => $3, priority => $4,
               run_at => coalesce($5, now()), max_attempts => $6, timeout => $7, expires_at => $8,
               idempotency_key => $9, concurrency_key => $10, is_shadow => $11, headers => $12::jsonb,
               run_id => fresh.run_id, debounce => $14, debounce_at_most => $15, throttle => $16) AS run_id
      FROM fresh
)
SELECT run_id, CASE WHEN run_id = fresh_id THEN 'new' WHEN $14 IS NULL THEN 'existing' ELSE 'replaced' END AS became FROM given
