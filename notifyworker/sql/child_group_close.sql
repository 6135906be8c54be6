-- $1 run_id, $2 lease_token, $3 lease_owner, $4 number
SELECT became, failed_position FROM {schema}.close_group($1, $2, $3, $4::integer)
