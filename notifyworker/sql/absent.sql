-- The leader's one look while it is armed, and its ping: which owners that should be present are not, whether anybody
-- could be woken by NOTIFY at all, whether this server still takes writes, and whether a vacuum is worth it.
-- $1 the schema's name
SELECT pg_notification_queue_usage() AS queue_usage, pg_is_in_recovery() AS is_standby,
       pg_stat_get_dead_tuples('{schema}.runs'::regclass) AS dead_rows,
       array(
           SELECT w.lease_owner
             FROM {schema}.workers AS w
            WHERE w.presence AND NOT EXISTS (
               SELECT FROM pg_locks AS l
                WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
                  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                  AND (l.classid::bigint << 32) | l.objid::bigint = hashtextextended($1 || w.lease_owner, 0))
       ) AS absent
