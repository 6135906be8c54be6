-- $1 the leader's lease_owner (null: a follower had to do it), $2 how many were taken, $3 how many of them failed,
-- $4 seconds until the next pass
UPDATE {schema}.reaper
   SET leader = $1, last_pass_at = now(), next_pass_at = now() + $4::float8 * interval '1 s', passes = passes + 1,
       reaped_total = reaped_total + $2::bigint, failed_total = failed_total + $3::bigint
