-- A cancelled run's handler has ended: its places are free.
-- $1 run_id, $2 lease_owner, $3 lease_token
SELECT {schema}.end_lingering($1, $2, $3)
