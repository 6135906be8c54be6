-- Every limit, how many places of it are taken now, and how many runs wait for a key of it; null for every kind or project.
SELECT nullif(l.kind, '') AS kind, nullif(l.project_id, '') AS project_id, l.per, l.max_running, l.rate,
       CASE WHEN l.rate IS NOT NULL THEN l.per_s END AS per_s, CASE WHEN l.rate IS NOT NULL THEN l.burst END AS burst,
       l.changed_at,
       (SELECT count(*) FROM {schema}.places AS p
         WHERE CASE l.per WHEN 'key' THEN p.limit_id = 0 AND l.project_id IN ('', p.project_id)
                          ELSE p.limit_id = l.limit_id END) AS running
  FROM {schema}.limits AS l
 ORDER BY l.kind, l.project_id, l.per
