-- $2 another payload; null: as it was
SELECT {schema}.replay($1, $2::jsonb) AS run_id
