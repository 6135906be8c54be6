-- Lock a run that is held under exactly this lease; no row if it is not, or if somebody has it locked at this moment.
-- $1 run_id, $2 lease_token, $3 lease_owner
SELECT run_id FROM {schema}.runs
 WHERE run_id = $1 AND lease_token = $2 AND lease_owner = $3 AND state = 'running'
   FOR UPDATE SKIP LOCKED
