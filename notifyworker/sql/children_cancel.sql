-- Cancels live children. $1 their parents, $2 limit, $3 positions (null: all that are not detached)
SELECT {schema}.cancel_children($1::uuid[], $2::integer, $3::text::int4multirange) AS cancelled
