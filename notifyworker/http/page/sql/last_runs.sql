-- How the last runs of each schedule ended: runs of its kind and project that carry its name in their headers.
-- $1 names, $2 kinds, how many runs are looked at a schedule: $3. A kind is a range of one, for its index (kind_times.sql)
SELECT s.name, r.run_id, r.state, r.run_at, r.started_at, r.finished_at, r.error_code
  FROM unnest($1::text[], $2::text[]) AS s (name, kind), LATERAL (
      (SELECT run_id, state, run_at, started_at, finished_at, error_code
         FROM (SELECT * FROM {schema}.run_history WHERE kind >= s.kind COLLATE "C" AND kind <= s.kind COLLATE "C"
                ORDER BY kind DESC, run_id DESC LIMIT $3) AS h
        WHERE h.headers ->> 'schedule' = s.name ORDER BY run_id DESC LIMIT 24)
      UNION ALL
      (SELECT run_id, state, run_at, started_at, NULL, NULL
         FROM (SELECT * FROM {schema}.runs ORDER BY run_id DESC LIMIT $3) AS l
        WHERE l.kind = s.kind AND l.headers ->> 'schedule' = s.name LIMIT 24)) AS r
 ORDER BY s.name, r.run_id DESC
