-- Which version was made live when, by whom and why, the newest first.
-- $1 kind (null: any), $2 project_id (null: any; empty: of every project), $3 limit
SELECT a.audit_id, a.at, a.actor, a.target ->> 'kind' AS kind, a.target ->> 'project_id' AS project_id, a.target ->> 'from' AS was,
       a.target ->> 'to' AS version, a.outcome AS why
  FROM {schema}.audit AS a
 WHERE a.action = 'version.set' AND ($1::text IS NULL OR a.target ->> 'kind' = $1)
   AND ($2::text IS NULL OR coalesce(a.target ->> 'project_id', '') = $2)
 ORDER BY a.audit_id DESC LIMIT $3
