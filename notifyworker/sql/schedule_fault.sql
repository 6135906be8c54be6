-- It can't be fired, until somebody changes it. $1 name, $2 changed_at, $3 error
UPDATE {schema}.schedules SET error = $3 WHERE name = $1 AND changed_at = $2
