-- This worker's row in the fleet.
INSERT INTO {schema}.workers (lease_owner, host, pid, version, kinds, project_ids, concurrency, running, state, shadow,
    presence, presumed_dead_s, lease_s, heartbeat_interval_s)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
ON CONFLICT (lease_owner) DO UPDATE
   SET running = excluded.running, state = excluded.state, presence = excluded.presence, kinds = excluded.kinds,
       heartbeat_at = now()
