-- $1 name, $2 paused
UPDATE {schema}.schedules SET paused = $2 WHERE name = $1 RETURNING name
