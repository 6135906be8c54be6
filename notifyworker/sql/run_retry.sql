-- The INSERT inside of it wakes a worker as any other does.
SELECT {schema}.retry($1) AS run_id
