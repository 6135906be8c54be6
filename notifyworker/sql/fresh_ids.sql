-- So many ids for runs, in order, and what `run_at` is by default in this transaction. As text, whatever codecs there are.
SELECT {schema}.uuid7()::text AS run_id, now()::text AS run_at FROM generate_series(1, $1::integer)
