-- Transactions, oldest first: whoever keeps vacuum from freeing rows of this database (holds), and whoever may keep the
-- notification queue from being emptied, a session that listens inside a transaction. Of a session of another login a
-- plain one sees neither age nor state (is_seen). No text of a statement leaves here: it may quote what is secret.
SELECT 'session' AS what, coalesce(a.pid::text, '') AS name, a.usename::text AS login, a.application_name AS application,
       a.datname::text AS database, a.state, extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS age_s,
       greatest(age(a.backend_xmin), age(a.backend_xid))::bigint AS age_transactions,
       (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL) AND (a.datname = current_database() OR a.datname IS NULL) AS holds,
       coalesce(a.query ILIKE 'listen%', false) AS listens, a.query IS DISTINCT FROM '<insufficient privilege>' AS is_seen
  FROM pg_stat_activity AS a
 WHERE a.pid <> pg_backend_pid() AND (a.xact_start IS NOT NULL OR a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL)
   AND a.backend_type IS DISTINCT FROM 'autovacuum worker'
UNION ALL
SELECT 'prepared', p.gid, p.owner::text, NULL, p.database::text, 'prepared',
       extract(epoch FROM clock_timestamp() - p.prepared)::float8, age(p.transaction)::bigint, p.database = current_database(), false, true
  FROM pg_prepared_xacts AS p
UNION ALL
SELECT 'slot', s.slot_name::text, NULL, s.plugin::text, s.database::text, CASE WHEN s.active THEN 'active' ELSE 'inactive' END,
       NULL, age(s.xmin)::bigint, true, false, true
  FROM pg_replication_slots AS s WHERE s.xmin IS NOT NULL
 ORDER BY 7 DESC NULLS LAST, 8 DESC NULLS LAST LIMIT 50
