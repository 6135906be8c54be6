-- For tests: what a drain still has to do. Runs of these kinds and projects that are due and not paused, or executed by
-- this worker, or whose lease is over; and schedules that are due.
-- $1 kinds, $2 projects (null: all), $3 lease_owner
SELECT r.kind, r.state, r.attempt
  FROM {schema}.runs AS r
 WHERE r.kind = ANY ($1::text[]) AND ($2::text[] IS NULL OR r.project_id = ANY ($2::text[]))
   AND CASE r.state
           WHEN 'running' THEN r.lease_owner = $3 OR r.lease_expires_at <= now()
           ELSE r.run_at <= now() AND coalesce(r.waits_for, 'key') = 'key' AND NOT EXISTS (
               SELECT FROM {schema}.pauses AS p
                WHERE p.kind IN ('', r.kind) AND p.project_id IN ('', r.project_id) AND (p.until IS NULL OR p.until > now()))
       END
UNION ALL
SELECT s.name, 'schedule', NULL
  FROM {schema}.schedules AS s
 WHERE NOT s.paused AND s.error IS NULL AND s.next_at <= now()
