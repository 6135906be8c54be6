-- $1 limit
SELECT at, run_id, kind, project_id, attempt, taken_from, taken_by, reason, became
  FROM {schema}.reaps ORDER BY reap_id DESC LIMIT $1
