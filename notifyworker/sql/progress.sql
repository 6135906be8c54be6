-- $1 run_id, $2 lease_token, $3 lease_owner, $4 progress
UPDATE {schema}.runs SET progress = $4::jsonb
 WHERE run_id = $1 AND lease_token = $2 AND lease_owner = $3 AND state = 'running'
RETURNING run_id
