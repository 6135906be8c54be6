-- Null: every kind, every project.
SELECT nullif(kind, '') AS kind, nullif(project_id, '') AS project_id, days, changed_at
  FROM {schema}.retention ORDER BY kind, project_id
