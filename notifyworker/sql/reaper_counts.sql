-- What a take-over between two passes took. $1 how many, $2 how many of them failed
UPDATE {schema}.reaper SET reaped_total = reaped_total + $1::bigint, failed_total = failed_total + $2::bigint
