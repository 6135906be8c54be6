-- $1 kind, $2 project_id, $3 state, $4 and $5 finished between, $6 error_code (null: any)
SELECT run_id, project_id, kind, state, payload, priority, run_at, attempt, max_attempts, timeout, expires_at,
       idempotency_key, concurrency_key, is_shadow, CASE WHEN is_shadow THEN coalesce(shadow_by, 'run') END AS shadow_by,
       headers, lease_token, created_at, started_at, finished_at, progress, errors, result, effects, error_code, settled_by,
       replay_of
  FROM {schema}.run_history
 WHERE ($1::text IS NULL OR kind = $1) AND ($2::text IS NULL OR project_id = $2) AND ($3::text IS NULL OR state = $3)
   AND ($4::timestamptz IS NULL OR finished_at >= $4) AND ($5::timestamptz IS NULL OR finished_at < $5)
   AND ($6::text IS NULL OR error_code = $6)
