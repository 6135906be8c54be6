-- The same, waiting for whoever has it locked: its own worker's heartbeat, or somebody who cancels it. Of one run alone,
-- in a handler's own transaction.
-- $1 run_id, $2 lease_token, $3 lease_owner
SELECT run_id FROM {schema}.runs
 WHERE run_id = $1 AND lease_token = $2 AND lease_owner = $3 AND state = 'running'
   FOR UPDATE
