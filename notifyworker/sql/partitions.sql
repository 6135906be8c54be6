-- The history's days: how many from today on are made without a gap, how many are older than any retention (and a day
-- of grace), and what lies in the default partition, by the server's statistics.
WITH today AS (
    SELECT (now() AT TIME ZONE 'UTC')::date AS day,
           (SELECT (value #>> '{}')::numeric::integer FROM {schema}.settings WHERE name = 'history_retention_days') AS kept,
           coalesce((SELECT max(days) FROM {schema}.retention), 0) AS kept_by_rules
), made AS (
    SELECT to_date(right(c.relname, 8), 'YYYYMMDD') AS day
      FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
     WHERE i.inhparent = '{schema}.run_history'::regclass AND c.relname ~ '^run_history_\d{8}$'
)
SELECT (SELECT count(*) FROM generate_series(0, 7) AS n
         WHERE NOT EXISTS (SELECT FROM generate_series(0, n) AS m WHERE t.day + m NOT IN (SELECT day FROM made))) AS days_made,
       (SELECT count(*) FROM made WHERE made.day < t.day - greatest(t.kept, t.kept_by_rules) - 1) AS days_overdue, t.kept AS kept_days,
       pg_stat_get_live_tuples('{schema}.run_history_default'::regclass) AS default_rows
  FROM today AS t
