-- Live runs by kind, by project and all together (both null): counted up to $1 runs, so that it stays cheap.
-- A run with an entry in errors waits for another attempt; its size tells, without reading it.
SELECT * FROM (
    SELECT grouping(kind) = 1 AND grouping(project_id) = 1 AS is_all, kind, project_id, count(*)::bigint AS runs,
           count(*) FILTER (WHERE state = 'pending')::bigint AS pending,
           count(*) FILTER (WHERE state = 'running')::bigint AS running,
           count(*) FILTER (WHERE state = 'pending' AND run_at <= now() AND NOT is_parked)::bigint AS due,
           count(*) FILTER (WHERE state = 'pending' AND size > 12)::bigint AS retrying,
           min(run_at) FILTER (WHERE state = 'pending' AND run_at <= now() AND NOT is_parked) AS due_since,
           count(*) FILTER (WHERE state = 'pending' AND run_at > now())::bigint AS later,
           min(run_at) FILTER (WHERE state = 'pending' AND run_at > now()) AS next_at
      FROM (SELECT kind, project_id, state, run_at, pg_column_size(errors) AS size,
                   coalesce(waits_for <> 'key', false) AS is_parked FROM {schema}.runs LIMIT $1) AS r
     GROUP BY GROUPING SETS ((kind), (project_id), ())) AS g
 ORDER BY is_all DESC, runs DESC LIMIT 500
