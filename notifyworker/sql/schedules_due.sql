-- Schedules that are due, and those of which it is not known yet when they are. $1 limit
SELECT name, cron, timezone, missed, next_at, last_tick_at, changed_at, now() AS now
  FROM {schema}.schedules
 WHERE NOT paused AND error IS NULL AND (next_at IS NULL OR next_at <= now())
 ORDER BY next_at NULLS FIRST LIMIT $1
