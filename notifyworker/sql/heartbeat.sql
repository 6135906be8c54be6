-- Renews the leases of one worker, all in one statement. Returns the runs that it renewed.
-- $1 lease_owner, $2 lease in seconds, $3 run_ids, $4 their lease_tokens
WITH mine AS MATERIALIZED (
    SELECT r.run_id
      FROM unnest($3::uuid[], $4::bigint[]) AS held (run_id, lease_token), LATERAL (
          SELECT r.run_id
            FROM {schema}.runs AS r
           WHERE r.run_id = held.run_id AND r.lease_token = held.lease_token AND r.lease_owner = $1
             AND r.state = 'running'
             FOR UPDATE SKIP LOCKED) AS r
)
UPDATE {schema}.runs SET lease_expires_at = now() + $2::float8 * interval '1 s'
 WHERE run_id = ANY (array(SELECT run_id FROM mine))
RETURNING run_id
