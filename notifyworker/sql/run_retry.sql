-- The INSERT inside of it wakes a worker as any other does.
-- $1 run_id, $2 the first step that is executed again (null: from the beginning), $3 another payload (null: as it was)
SELECT {schema}.retry($1, from_step => $2, payload => $3::jsonb) AS run_id
