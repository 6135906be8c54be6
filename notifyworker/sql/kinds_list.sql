-- Kind by kind: what waits, what runs, and what was settled in the last $1 seconds. At most $2 live runs and $2 settled
-- ones are counted, so that a look stays cheap.
SELECT kind, sum(ready)::bigint AS ready, sum(later)::bigint AS later, sum(running)::bigint AS running,
       max(oldest_s) AS oldest_s, sum(completed)::bigint AS completed, sum(failed)::bigint AS failed,
       sum(cancelled)::bigint AS cancelled, max(wait_p95_s) AS wait_p95_s, max(took_p50_s) AS took_p50_s,
       max(took_p95_s) AS took_p95_s
  FROM (
    SELECT kind, count(*) FILTER (WHERE state = 'pending' AND run_at <= now() AND NOT is_parked) AS ready,
           count(*) FILTER (WHERE state = 'pending' AND (run_at > now() OR is_parked)) AS later,
           count(*) FILTER (WHERE state = 'running') AS running,
           extract(epoch FROM now() - min(run_at) FILTER (WHERE state = 'pending' AND run_at <= now() AND NOT is_parked))::float8 AS oldest_s,
           0 AS completed, 0 AS failed, 0 AS cancelled, NULL::float8 AS wait_p95_s, NULL::float8 AS took_p50_s,
           NULL::float8 AS took_p95_s
      FROM (SELECT kind, state, run_at, coalesce(waits_for <> 'key', false) AS is_parked FROM {schema}.runs LIMIT $2) AS live
     GROUP BY kind
    UNION ALL
    SELECT kind, 0, 0, 0, NULL, count(*) FILTER (WHERE state = 'completed'), count(*) FILTER (WHERE state = 'failed'),
           count(*) FILTER (WHERE state = 'cancelled'),
           percentile_cont(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM started_at - run_at)::float8),
           percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM finished_at - started_at)::float8),
           percentile_cont(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM finished_at - started_at)::float8)
      FROM (SELECT kind, state, run_at, started_at, finished_at FROM {schema}.run_history
             WHERE finished_at > now() - make_interval(secs => $1) LIMIT $2) AS settled
     GROUP BY kind) AS parts
 GROUP BY kind
 ORDER BY sum(ready) + sum(running) DESC, sum(completed) + sum(failed) + sum(cancelled) DESC, kind
