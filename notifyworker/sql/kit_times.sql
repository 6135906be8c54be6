-- For tests: every column of this schema that is a time, by table. Not those of the history, whose times say in which
-- partition a row is, nor of schedules, whose times are places in a calendar.
SELECT c.relname::text AS table_name, array_agg(a.attname::text ORDER BY a.attnum) AS columns
  FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
 WHERE c.relnamespace = quote_ident('{name}')::regnamespace AND c.relkind = 'r' AND NOT c.relispartition
   AND c.relname NOT IN ('migrations', 'settings', 'schedules')
   AND a.attnum > 0 AND NOT a.attisdropped AND a.atttypid = 'timestamptz'::regtype
 GROUP BY c.relname ORDER BY c.relname
