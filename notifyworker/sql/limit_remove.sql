-- $1 kind, $2 project_id (null: every), $3 per
SELECT {schema}.remove_limit($1, $2, $3) AS removed
