-- Which of these runs are still this worker's. What a write missed and is not here is lost.
-- $1 lease_owner, $2 run_ids, $3 their lease_tokens
SELECT r.run_id
  FROM unnest($2::uuid[], $3::bigint[]) AS held (run_id, lease_token), LATERAL (
      SELECT r.run_id
        FROM {schema}.runs AS r
       WHERE r.run_id = held.run_id AND r.lease_token = held.lease_token AND r.lease_owner = $1 AND r.state = 'running'
      OFFSET 0) AS r
