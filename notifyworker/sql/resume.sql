-- $1 kind, $2 project_id (null: every)
SELECT {schema}.resume($1, $2) AS resumed
