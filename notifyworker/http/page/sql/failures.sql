-- Attempts that failed, of runs that have failed and of runs that wait for another: by kind and cause, and by minute (kind
-- null). Causes that differ in numbers alone are one.
-- $1 since, $2 how many runs of each sort are looked at, $3 how many live runs are passed on the way to them
WITH failed AS (
    SELECT kind, project_id, errors
      FROM (SELECT kind, project_id, errors, finished_at, state FROM {schema}.run_history
             WHERE state <> 'completed' ORDER BY run_id DESC LIMIT $2) AS h
     WHERE h.finished_at >= $1 AND h.state = 'failed'
    UNION ALL
    (SELECT kind, project_id, errors FROM (SELECT kind, project_id, errors FROM {schema}.runs LIMIT $3) AS r
      WHERE pg_column_size(errors) > 12 LIMIT $2)
), entry AS (
    SELECT f.kind, f.project_id, e ->> 'code' AS code, left(split_part(coalesce(e ->> 'message', ''), E'\n', 1), 300) AS message,
           (e ->> 'at')::timestamptz AS at
      FROM failed AS f, jsonb_array_elements(f.errors) AS e
     WHERE jsonb_typeof(e) = 'object'
)
SELECT date_trunc('minute', at) AS minute, kind, code, min(message) AS message, count(*)::bigint AS attempts, min(at) AS first_at,
       max(at) AS last_at, count(DISTINCT project_id)::bigint AS projects, min(project_id) AS project_id
  FROM entry WHERE at >= $1
 GROUP BY GROUPING SETS ((1), (kind, code, regexp_replace(message, '[0-9]+', '#', 'g')))
 ORDER BY kind IS NULL, attempts DESC LIMIT 2000
