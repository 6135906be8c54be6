-- $1.. the producer's columns; existing: whether another run held the idempotency key already
WITH fresh AS MATERIALIZED (
    SELECT coalesce($13::uuid, {schema}.uuid7()) AS run_id
), given AS (
    SELECT fresh.run_id AS fresh_id,
           {schema}.enqueue(kind => $1, payload => $2::jsonb, project_id => $3, priority => $4,
               run_at => coalesce($5, now()), max_attempts => $6, timeout => $7, expires_at => $8,
               idempotency_key => $9, concurrency_key => $10, is_shadow => $11, headers => $12::jsonb,
               run_id => fresh.run_id) AS run_id
      FROM fresh
)
SELECT run_id, run_id <> fresh_id AS existing FROM given
