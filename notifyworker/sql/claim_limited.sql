-- The same as claim.sql for lanes with a limit or of runs with concurrency keys: schema/0012_limits.sql.
-- $1 to $13 as there
SELECT * FROM {schema}.claim_limited($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
