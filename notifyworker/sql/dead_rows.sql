SELECT pg_stat_get_dead_tuples('{schema}.runs'::regclass) AS dead_rows
