-- Of these owners, who holds runs, after how many seconds of absence its worker said it may be presumed dead, and when it
-- last beat: one that came back and was lost again between two looks begins its absence anew.
-- $1 lease_owners
SELECT w.lease_owner, w.presumed_dead_s, w.heartbeat_at
  FROM {schema}.workers AS w
 WHERE w.lease_owner = ANY ($1::text[]) AND w.presence
   AND EXISTS (SELECT FROM {schema}.runs AS r WHERE r.lease_expires_at IS NOT NULL AND r.lease_owner = w.lease_owner)
