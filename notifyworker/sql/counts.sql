-- Live runs by state, kind by kind; the oldest that is ready. Counted up to $1 runs, so that it stays cheap.
SELECT state, count(*)::bigint AS runs,
       extract(epoch FROM now() - min(run_at) FILTER (WHERE state = 'pending' AND run_at <= now() AND NOT is_parked))::float8 AS oldest_s
  FROM (SELECT state, run_at, coalesce(waits_for <> 'key', false) AS is_parked FROM {schema}.runs LIMIT $1) AS r
 GROUP BY state
