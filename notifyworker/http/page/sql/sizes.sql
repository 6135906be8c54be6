-- Our tables, the history's days as one: what they weigh and hold, by the server's statistics
SELECT CASE WHEN c.relname LIKE 'run\_history\_%' THEN 'run_history' ELSE c.relname END AS name, count(*)::bigint AS parts,
       sum(pg_total_relation_size(c.oid))::bigint AS bytes, sum(greatest(pg_stat_get_live_tuples(c.oid), 0))::bigint AS live_rows,
       sum(pg_stat_get_dead_tuples(c.oid))::bigint AS dead_rows,
       max(greatest(pg_stat_get_last_vacuum_time(c.oid), pg_stat_get_last_autovacuum_time(c.oid))) AS vacuumed_at
  FROM pg_class AS c WHERE c.relnamespace = quote_ident('{name}')::regnamespace AND c.relkind = 'r'
 GROUP BY 1 ORDER BY bytes DESC
