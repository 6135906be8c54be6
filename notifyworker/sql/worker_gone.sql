-- $1 lease_owner. A row whose runs are not all given back stays, for the leader to see that its owner is absent.
DELETE FROM {schema}.workers AS w
 WHERE w.lease_owner = $1
   AND NOT EXISTS (SELECT FROM {schema}.runs AS r WHERE r.lease_expires_at IS NOT NULL AND r.lease_owner = $1)
