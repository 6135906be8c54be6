-- What a filter can be chosen from: the kinds and projects of live runs, of workers, and of what was settled lately; $1 runs
SELECT 'kind' AS what, kind AS name FROM (SELECT kind FROM {schema}.runs LIMIT $1) AS r
UNION SELECT 'kind', unnest(kinds) FROM {schema}.workers
UNION SELECT 'kind', kind FROM (SELECT kind FROM {schema}.run_history ORDER BY run_id DESC LIMIT $1) AS h
UNION SELECT 'project', project_id FROM (SELECT project_id FROM {schema}.runs LIMIT $1) AS r
UNION SELECT 'project', project_id FROM (SELECT project_id FROM {schema}.run_history ORDER BY run_id DESC LIMIT $1) AS h
 ORDER BY 1, 2 LIMIT 500
