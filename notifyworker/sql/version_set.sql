-- $1 kind, $2 version (null: the handler without one), $3 project_id (null: every one), $4 who, $5 why
SELECT {schema}.set_version($1, $2, $3, $4, $5) AS was
