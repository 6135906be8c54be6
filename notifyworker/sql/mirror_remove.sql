-- $1 kind, $2 version, $3 project_id (null: the rule of every project)
SELECT {schema}.remove_mirror($1, $2, $3) AS removed
