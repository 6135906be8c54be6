-- Move a schedule on, and insert a run for each of the ticks that get one, unless somebody else has done so.
-- $1 name, $2 the next_at that was seen, $3 the last tick that is done with, $4 when it is due next, $5 ticks to fire
WITH moved AS (
    UPDATE {schema}.schedules SET last_tick_at = $3, next_at = $4
     WHERE name = $1 AND next_at = $2 AND NOT paused
    RETURNING *
)
INSERT INTO {schema}.runs (kind, payload, project_id, priority, max_attempts, timeout, headers)
SELECT kind, payload, project_id, priority, max_attempts, timeout,
       headers || jsonb_build_object('schedule', name, 'tick', to_char(tick AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'))
  FROM moved, unnest($5::timestamptz[]) AS tick
 ORDER BY tick
RETURNING run_id
