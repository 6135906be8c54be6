-- $1 run_id (null: all), $2 limit
SELECT at, run_id, kind, project_id, attempt, taken_from, taken_by, reason, became
  FROM {schema}.reaps WHERE $1::uuid IS NULL OR run_id = $1 ORDER BY reap_id DESC LIMIT $2
