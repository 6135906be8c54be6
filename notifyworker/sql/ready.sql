-- All lanes that have a pending run, of any kind, with the head of each: the look from the beginning of a leader that
-- coalesces. See lanes.sql.
WITH RECURSIVE lane AS (
    (SELECT r.kind, r.project_id, {rank} AS rank, r.run_at, r.run_id
       FROM {schema}.runs AS r
      WHERE r.state = 'pending' AND r.waits_for IS NULL
      ORDER BY r.kind, r.project_id, {rank}, r.run_at, r.run_id LIMIT 1)
    UNION ALL
    SELECT next.*
      FROM lane, LATERAL (
          SELECT r.kind, r.project_id, {rank} AS rank, r.run_at, r.run_id
            FROM {schema}.runs AS r
           WHERE r.state = 'pending' AND r.waits_for IS NULL
             AND (r.kind, r.project_id, {rank}) > (lane.kind, lane.project_id, lane.rank)
           ORDER BY r.kind, r.project_id, {rank}, r.run_at, r.run_id LIMIT 1) AS next
)
SELECT kind, project_id, rank, least(run_at, now()) AS mark, run_at <= now() AS is_ready, run_id FROM lane
