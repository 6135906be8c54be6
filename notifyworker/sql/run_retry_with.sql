-- $2 another payload; null: as it was
SELECT {schema}.retry_with($1, $2::jsonb) AS run_id
