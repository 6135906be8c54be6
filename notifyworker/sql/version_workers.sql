-- How many workers of the fleet have a version. $1 kind, $2 version
SELECT count(*) AS workers FROM {schema}.workers AS w
 WHERE w.versions @> ARRAY[$1 || '@' || $2] AND w.heartbeat_at > now() - 2.5 * w.heartbeat_interval_s * interval '1 s'
