-- What is live where a version has a name, and how many workers of the fleet have that version.
SELECT v.kind, nullif(v.project_id, '') AS project_id, v.version, v.changed_at, (
           SELECT count(*) FROM {schema}.workers AS w
            WHERE w.versions @> ARRAY[v.kind || '@' || v.version]
              AND w.heartbeat_at > now() - 2.5 * w.heartbeat_interval_s * interval '1 s') AS workers
  FROM {schema}.versions AS v ORDER BY v.kind, v.project_id
