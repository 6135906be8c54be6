-- silent_s: seconds since the last pass; before the first, since the migration
SELECT leader, mode, elected_at, last_pass_at, next_pass_at, passes, reaped_total, failed_total,
       extract(epoch FROM now() - coalesce(last_pass_at, (SELECT max(applied_at) FROM {schema}.migrations)))::float8 AS silent_s
  FROM {schema}.reaper
