-- $1 kind, $2 project_id (null: every), $3 per, $4 max_running, $5 rate, $6 per_s, $7 burst
SELECT {schema}.set_limit($1, $2, $3, $4, $5, coalesce($6::float8, 1), $7)
