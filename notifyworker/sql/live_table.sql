-- The live table by the server's statistics, which any login may read. Without TOAST: what payloads take is theirs.
SELECT pg_stat_get_dead_tuples(c.oid) AS dead_rows, pg_stat_get_live_tuples(c.oid) AS live_rows,
       pg_relation_size(c.oid) + pg_indexes_size(c.oid) AS bytes,
       greatest(pg_stat_get_last_vacuum_time(c.oid), pg_stat_get_last_autovacuum_time(c.oid)) AS vacuumed_at, now() AS now,
       coalesce('autovacuum_enabled=false' = ANY (c.reloptions) OR 'autovacuum_enabled=off' = ANY (c.reloptions), false) AS is_left_out
  FROM pg_class AS c WHERE c.oid = '{schema}.runs'::regclass
