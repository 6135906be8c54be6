-- $1 kind, $2 version, $3 percent, $4 project_id (null: every one), $5 until (null: until it is removed), $6 per hour
SELECT {schema}.set_mirror($1, $2, $3, $4, $5, $6)
