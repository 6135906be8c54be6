-- $1 the schema's name
SELECT w.lease_owner, w.host, w.pid, w.version, w.kinds, w.versions, w.project_ids, w.concurrency, w.running, w.state, w.shadow,
       w.presence, w.lease_s, w.heartbeat_interval_s, w.presumed_dead_s, w.started_at, w.heartbeat_at, w.drain_asked,
       w.lease_owner = (SELECT leader FROM {schema}.reaper) AS is_leader,
       CASE WHEN w.presence THEN EXISTS (
           SELECT FROM pg_locks AS l
            WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
              AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
              AND (l.classid::bigint << 32) | l.objid::bigint = hashtextextended($1 || w.lease_owner, 0))
       END AS is_present
  FROM {schema}.workers AS w ORDER BY w.started_at, w.lease_owner
