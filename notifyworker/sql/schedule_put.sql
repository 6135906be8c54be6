-- Make a schedule, or change it to exactly this.
-- $1 name, $2 cron, $3 timezone, $4 kind, $5 payload, $6 project_id, $7 priority, $8 max_attempts, $9 timeout, $10 headers,
-- $11 paused, $12 missed
INSERT INTO {schema}.schedules (name, cron, timezone, kind, payload, project_id, priority, max_attempts, timeout, headers, paused, missed)
VALUES ($1, $2, $3, $4, $5::jsonb, $6, $7, $8, $9, $10::jsonb, $11, $12)
ON CONFLICT (name) DO UPDATE SET cron = excluded.cron, timezone = excluded.timezone, kind = excluded.kind,
    payload = excluded.payload, project_id = excluded.project_id, priority = excluded.priority,
    max_attempts = excluded.max_attempts, timeout = excluded.timeout, headers = excluded.headers, paused = excluded.paused,
    missed = excluded.missed
