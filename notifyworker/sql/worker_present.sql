-- This worker's row in the fleet. Returns how many serve the same kinds and projects, itself among them, and its place
-- in their order: what notifications designate by; and whether somebody has asked it to drain. A worker that has been silent for more than two beats is left out.
WITH me AS (
    INSERT INTO {schema}.workers AS w (lease_owner, host, pid, version, kinds, project_ids, concurrency, running, state,
        shadow, presence, presumed_dead_s, lease_s, heartbeat_interval_s, versions)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
    ON CONFLICT (lease_owner) DO UPDATE
       SET running = excluded.running, state = excluded.state, presence = excluded.presence, kinds = excluded.kinds,
           heartbeat_at = now()
    RETURNING w.lease_owner, w.kinds, w.versions, w.project_ids, w.drain_asked
)
SELECT 1 + count(w.lease_owner)::integer AS size, count(w.lease_owner) FILTER (WHERE w.lease_owner < me.lease_owner)::integer AS position,
       me.drain_asked
  FROM me LEFT JOIN {schema}.workers AS w
    ON w.lease_owner <> me.lease_owner AND w.kinds = me.kinds AND w.versions = me.versions AND w.project_ids IS NOT DISTINCT FROM me.project_ids
   AND w.state = 'running' AND w.heartbeat_at > now() - 2.5 * w.heartbeat_interval_s * interval '1 s'
 GROUP BY me.lease_owner, me.drain_asked
