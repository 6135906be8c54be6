-- running -> pending, until the children of a group are settled. Null: it is not held, or locked by somebody for a moment.
-- $1 run_id, $2 lease_token, $3 lease_owner, $4 number, $5 its last progress, where that is not in its row yet
SELECT {schema}.park($1, $2, $3, $4::integer, $5::jsonb) AS parked
