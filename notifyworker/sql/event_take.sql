-- $1 run_id, $2 lease_token, $3 lease_owner, $4 position, $5 the step's name, $6 name, $7 key, $8 seconds (null: for ever),
-- $9 its last progress, where that is not in its row yet
SELECT became, result FROM {schema}.take_event($1, $2, $3, $4::integer, $5, $6, $7, $8::float8, $9::jsonb)
