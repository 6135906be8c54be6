-- Rows of workers that hold nothing and are gone for good: absent ($1) and silent for a minute, or silent for an hour.
-- Also all but the last 10,000 reaps.
WITH old AS (
    DELETE FROM {schema}.reaps WHERE reap_id <= (SELECT max(reap_id) - 10000 FROM {schema}.reaps)
)
DELETE FROM {schema}.workers AS w
 WHERE w.heartbeat_at < now() - CASE WHEN w.lease_owner = ANY ($1::text[]) THEN interval '1 min' ELSE interval '1 hour' END
   AND NOT EXISTS (
       SELECT FROM {schema}.runs AS r WHERE r.lease_expires_at IS NOT NULL AND r.lease_owner = w.lease_owner)
RETURNING w.lease_owner
