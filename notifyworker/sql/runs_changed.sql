-- What a follower may have to tell: runs settled since $1, and live runs above $2, among $3, or held by a worker; each
-- part at most $4. Of kind $5, project_id $6, is_shadow $7; the settled ones also in state $8 and by a worker whose name
-- begins with $9 (null: any).
WITH wanted AS MATERIALIZED (
    (SELECT run_id FROM {schema}.runs WHERE run_id > $2 ORDER BY run_id DESC LIMIT $4)
    UNION SELECT unnest($3::uuid[])
    UNION (SELECT run_id FROM {schema}.runs WHERE lease_expires_at IS NOT NULL ORDER BY lease_expires_at DESC LIMIT $4)
)
(SELECT run_id, lease_token, state, kind, project_id, attempt, max_attempts, is_shadow, settled_by AS worker, created_at,
        started_at, finished_at, error_code, errors -> -1 AS error
   FROM {schema}.run_history
  WHERE finished_at >= $1 AND ($5::text IS NULL OR kind = $5) AND ($6::text IS NULL OR project_id = $6)
    AND ($7::boolean IS NULL OR is_shadow = $7) AND ($8::text IS NULL OR state = $8)
    AND ($9::text IS NULL OR starts_with(settled_by, $9))
  ORDER BY finished_at DESC LIMIT $4)
UNION ALL
-- The LIMIT keeps it a look by the primary key for each: as a join it would be a walk over all live runs.
SELECT r.run_id, lease_token, state, kind, project_id, attempt, max_attempts, is_shadow, lease_owner, created_at,
       started_at, NULL, NULL, errors -> -1
  FROM wanted CROSS JOIN LATERAL (SELECT * FROM {schema}.runs AS r WHERE r.run_id = wanted.run_id LIMIT 1) AS r
 WHERE ($5::text IS NULL OR kind = $5) AND ($6::text IS NULL OR project_id = $6)
   AND ($7::boolean IS NULL OR is_shadow = $7)
