-- For tests: so much time has passed. A schedule that would have become due meanwhile is due now, once.
-- $1 seconds
UPDATE {schema}.schedules
   SET last_tick_at = last_tick_at - $1::float8 * interval '1 s',
       next_at = greatest(next_at - $1::float8 * interval '1 s', least(next_at, now()))
 WHERE next_at IS NOT NULL
