-- Renews the leases of one worker, all in one statement. Returns the runs that it renewed.
-- $1 lease_owner, $2 lease in seconds, $3 run_ids, $4 their lease_tokens
WITH mine AS MATERIALIZED (
    SELECT r.run_id
      FROM unnest($3::uuid[], $4::bigint[]) AS held (run_id, lease_token)
      JOIN {schema}.runs AS r ON r.run_id = held.run_id
     WHERE r.lease_token = held.lease_token AND r.lease_owner = $1 AND r.state = 'running'
       FOR UPDATE OF r SKIP LOCKED
)
UPDATE {schema}.runs AS r SET lease_expires_at = now() + $2::float8 * interval '1 s'
  FROM mine
 WHERE r.run_id = mine.run_id
RETURNING r.run_id
