-- A result that is too large to come along with the others. $1 run_id, $2 lease_token, $3 lease_owner, $4 position
SELECT s.result
  FROM {schema}.runs AS r
  JOIN {schema}.steps AS s ON s.run_id = r.run_id AND s.run_created_at = r.created_at AND s.position = $4
 WHERE r.run_id = $1 AND r.lease_token = $2 AND r.lease_owner = $3 AND r.state = 'running'
