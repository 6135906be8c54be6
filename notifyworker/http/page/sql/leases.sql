-- $1 lease_owner, $2 limit
SELECT run_id, kind, project_id, attempt, max_attempts, lease_token, lease_expires_at, started_at
  FROM {schema}.runs WHERE lease_expires_at IS NOT NULL AND lease_owner = $1 ORDER BY lease_expires_at LIMIT $2
