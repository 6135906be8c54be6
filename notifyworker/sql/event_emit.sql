-- $1 name, $2 payload, $3 run_id, $4 key, $5 project_id, $6 seconds for which it is kept (null: as usual)
SELECT {schema}.emit($1, $2::jsonb, $3::uuid, $4::text, $5::text, coalesce($6::float8 * interval '1 s', '7 days')) AS emitted
