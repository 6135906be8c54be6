-- $1 kind, $2 version
SELECT {schema}.reset_shadow($1, $2) AS forgotten
