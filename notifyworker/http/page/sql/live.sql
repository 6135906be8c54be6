-- Live runs by kind, by project and all together (both null): counted up to $1 runs, so that it stays cheap. Counted once by
-- kind and project, and these few rows then three ways.
-- A run with an entry in errors waits for another attempt; its size tells, without reading it.
WITH counted AS MATERIALIZED (
    SELECT kind, project_id, count(*)::bigint AS runs, count(*) FILTER (WHERE state = 'running')::bigint AS running,
           count(*) FILTER (WHERE state = 'pending' AND run_at <= now() AND NOT is_parked)::bigint AS due,
           count(*) FILTER (WHERE state = 'pending' AND size > 12)::bigint AS retrying,
           min(run_at) FILTER (WHERE state = 'pending' AND run_at <= now() AND NOT is_parked) AS due_since,
           count(*) FILTER (WHERE state = 'pending' AND run_at > now())::bigint AS later,
           min(run_at) FILTER (WHERE state = 'pending' AND run_at > now()) AS next_at
      FROM (SELECT kind, project_id, state, run_at, pg_column_size(errors) AS size,
                   coalesce(waits_for <> 'key', false) AS is_parked FROM {schema}.runs LIMIT $1) AS r
     GROUP BY kind, project_id
)
SELECT * FROM (
    SELECT grouping(kind) = 1 AND grouping(project_id) = 1 AS is_all, kind, project_id, coalesce(sum(runs), 0)::bigint AS runs,
           coalesce(sum(runs - running), 0)::bigint AS pending, coalesce(sum(running), 0)::bigint AS running,
           coalesce(sum(due), 0)::bigint AS due, coalesce(sum(retrying), 0)::bigint AS retrying, min(due_since) AS due_since,
           coalesce(sum(later), 0)::bigint AS later, min(next_at) AS next_at
      FROM counted
     GROUP BY GROUPING SETS ((kind), (project_id), ())) AS g
 ORDER BY is_all DESC, runs DESC LIMIT 500
