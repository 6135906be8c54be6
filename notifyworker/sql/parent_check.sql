-- False: somebody has it, or a child of it, locked at this moment. $1 parent_id, $2 its created_at
SELECT {schema}.check_parent($1, $2::timestamptz) AS is_done
