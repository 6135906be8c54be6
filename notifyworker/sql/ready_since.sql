-- The heads of known lanes, each read from a mark on: what a leader that coalesces compares from tick to tick.
-- An element a lane: $1 kind, $2 project_id, $3 rank, $4 mark
SELECT l.kind, l.project_id, l.rank, head.run_at AS mark, head.run_id
  FROM unnest($1::text[], $2::text[], $3::integer[], $4::timestamptz[]) AS l (kind, project_id, rank, mark), LATERAL (
      SELECT r.run_at, r.run_id
        FROM {schema}.runs AS r
       WHERE r.state = 'pending' AND r.waits_for IS NULL AND r.kind = l.kind AND r.project_id = l.project_id AND {rank} = l.rank
         AND r.run_at >= l.mark AND r.run_at <= now()
       ORDER BY r.kind, r.project_id, {rank}, r.run_at, r.run_id LIMIT 1) AS head
