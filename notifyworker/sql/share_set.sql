-- $1 project_id, $2 weight
SELECT {schema}.set_share($1, $2)
