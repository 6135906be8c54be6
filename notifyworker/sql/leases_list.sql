-- $1 after this run_id (null: from the start), $2 limit
WITH held AS MATERIALIZED (
    SELECT * FROM {schema}.runs WHERE lease_expires_at IS NOT NULL
)
SELECT run_id, kind, project_id, attempt, max_attempts, is_shadow, lease_owner, lease_token, lease_expires_at, started_at,
       extract(epoch FROM lease_expires_at - now())::float8 AS expires_in_s
  FROM held
 WHERE ($1::uuid IS NULL OR run_id > $1)
 ORDER BY run_id LIMIT $2
