-- Of these owners, who holds runs, and after how many seconds of absence its worker said it may be presumed dead.
-- $1 lease_owners
SELECT w.lease_owner, w.presumed_dead_s
  FROM {schema}.workers AS w
 WHERE w.lease_owner = ANY ($1::text[]) AND w.presence
   AND EXISTS (SELECT FROM {schema}.runs AS r WHERE r.lease_expires_at IS NOT NULL AND r.lease_owner = w.lease_owner)
