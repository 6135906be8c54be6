-- The session that holds the leadership. No row: nobody does.
SELECT l.pid, a.usename::text AS login
  FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
 WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND l.classid = {lock_class}::oid AND l.objid = ({leader_lock}::bigint & 4294967295)::oid
