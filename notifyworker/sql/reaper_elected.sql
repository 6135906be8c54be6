-- $1 lease_owner of the leader, $2 mode of the wake gate
UPDATE {schema}.reaper SET leader = $1, elected_at = CASE WHEN leader IS DISTINCT FROM $1 THEN now() ELSE elected_at END,
       mode = $2
