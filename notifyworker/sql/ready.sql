-- The heads of all lanes that have something ready: what a leader that coalesces compares from tick to tick.
WITH RECURSIVE lane AS (
    (SELECT r.kind, r.project_id, -r.priority::int AS rank, r.run_at, r.run_id
       FROM {schema}.runs AS r
      WHERE r.state = 'pending'
      ORDER BY r.kind, r.project_id, -r.priority::int, r.run_at, r.run_id LIMIT 1)
    UNION ALL
    SELECT next.*
      FROM lane, LATERAL (
          SELECT r.kind, r.project_id, -r.priority::int AS rank, r.run_at, r.run_id
            FROM {schema}.runs AS r
           WHERE r.state = 'pending'
             AND (r.kind, r.project_id, -r.priority::int) > (lane.kind, lane.project_id, lane.rank)
           ORDER BY r.kind, r.project_id, -r.priority::int, r.run_at, r.run_id LIMIT 1) AS next
)
SELECT array(SELECT run_id FROM lane WHERE run_at <= now()) AS heads
