-- How the newest runs of a kind ended, since a time, in one project or all. $1 kind, $2 project_id (null: all), $3 since
SELECT count(*) FILTER (WHERE state = 'completed')::bigint AS completed, count(*) FILTER (WHERE state = 'failed')::bigint AS failed
  FROM (SELECT state, project_id, finished_at FROM {schema}.run_history WHERE kind = $1 ORDER BY run_id DESC LIMIT 2000) AS h
 WHERE h.finished_at >= $3 AND ($2::text IS NULL OR h.project_id = $2)
