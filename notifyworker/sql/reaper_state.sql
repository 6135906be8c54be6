-- silent_s: seconds since the last pass; null before the first
SELECT leader, mode, elected_at, last_pass_at, next_pass_at, passes, reaped_total, failed_total,
       extract(epoch FROM now() - last_pass_at)::float8 AS silent_s
  FROM {schema}.reaper
