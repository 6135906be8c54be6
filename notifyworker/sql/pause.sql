-- $1 kind, $2 project_id (null: every), $3 until, $4 seconds from now on in place of it, $5 reason
SELECT {schema}.pause($1, $2, coalesce($3, now() + $4::float8 * interval '1 s'), $5)
