-- What is paused now; null for every kind or project.
SELECT nullif(kind, '') AS kind, nullif(project_id, '') AS project_id, until, paused_at, reason
  FROM {schema}.pauses
 WHERE until IS NULL OR until > now()
 ORDER BY pauses.kind, pauses.project_id
