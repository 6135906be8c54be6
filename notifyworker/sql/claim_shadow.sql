-- Copies of live runs for the versions that this worker has, made and leased: schema/0024_shadow.sql.
-- An element a version: $1 kind, $2 version, $3 max_attempts, $4 timeout in seconds (null: none). $5 project ids (null: all),
-- $6 limit, $7 lease_owner, $8 lease in seconds
SELECT * FROM {schema}.claim_shadow($1, $2, $3, $4, $5, $6, $7, $8)
