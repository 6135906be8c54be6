-- Attempts that failed, of runs that have failed and of runs that wait for another: by kind and cause, and by minute (kind
-- null). Causes that differ in numbers alone are one.
-- `recent_` is of those since $4 alone.
-- $1 since, $2 how many runs of each sort are looked at, $3 how many live runs are passed on the way to them, $4 recent since
WITH failed AS (
    SELECT kind, project_id, errors
      FROM (SELECT kind, project_id, errors, finished_at, state FROM {schema}.run_history
             WHERE state <> 'completed' ORDER BY run_id DESC LIMIT $2) AS h
     WHERE h.finished_at >= $1 AND h.state = 'failed'
    UNION ALL
    (SELECT kind, project_id, errors FROM (SELECT kind, project_id, errors FROM {schema}.runs LIMIT $3) AS r
      WHERE pg_column_size(errors) > 12 LIMIT $2)
), entry AS MATERIALIZED (
    SELECT f.kind, f.project_id, e ->> 'code' AS code, left(split_part(coalesce(e ->> 'message', ''), E'\n', 1), 300) AS message,
           (e ->> 'at')::timestamptz AS at
      FROM failed AS f, jsonb_array_elements(f.errors) AS e
     WHERE jsonb_typeof(e) = 'object' AND (e ->> 'at')::timestamptz >= $1
), counted AS MATERIALIZED (  -- few: what differs in numbers alone is one, and each text is looked at once
    SELECT date_trunc('minute', at) AS minute, kind, code, regexp_replace(message, '[0-9]+', '#', 'g') AS shape, project_id,
           min(message) AS message, count(*)::bigint AS attempts, min(at) AS first_at, max(at) AS last_at,
           count(*) FILTER (WHERE at >= $4)::bigint AS recent_attempts, min(at) FILTER (WHERE at >= $4) AS recent_first_at
      FROM entry GROUP BY 1, 2, 3, 4, 5
)
SELECT minute, kind, code, min(message) AS message, sum(attempts)::bigint AS attempts, min(first_at) AS first_at,
       max(last_at) AS last_at, count(DISTINCT project_id)::bigint AS projects, min(project_id) AS project_id,
       sum(recent_attempts)::bigint AS recent_attempts, min(recent_first_at) AS recent_first_at,
       count(DISTINCT project_id) FILTER (WHERE recent_attempts > 0)::bigint AS recent_projects,
       min(project_id) FILTER (WHERE recent_attempts > 0) AS recent_project_id
  FROM counted
 GROUP BY GROUPING SETS ((1), (kind, code, shape))
 ORDER BY kind IS NULL, attempts DESC LIMIT 2000
