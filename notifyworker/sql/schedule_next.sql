-- When a new or changed schedule is due first, unless it has changed again meanwhile.
-- $1 name, $2 changed_at, $3 next_at
UPDATE {schema}.schedules SET next_at = $3 WHERE name = $1 AND changed_at = $2 AND next_at IS NULL
