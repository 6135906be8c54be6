-- A cancelled run's handler has ended: its places are free.
-- $1 run_id, $2 lease_owner
SELECT {schema}.end_lingering($1, $2)
