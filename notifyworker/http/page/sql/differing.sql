-- Pairs that differ, the first first.
-- $1 kind, $2 version, $3 project_id (null: any), $4 chosen since then (null: ever), $5 way to differ (null: any), $6 limit, $7 offset
SELECT p.live_run_id, p.shadow_run_id, p.project_id, p.ways, p.diff, p.live_state, p.shadow_state, p.live_s, p.shadow_s, p.chosen_at
  FROM {schema}.shadow_pairs AS p
 WHERE p.became = 'different' AND p.kind = $1 AND p.version = $2 AND ($3::text IS NULL OR p.project_id = $3)
   AND ($4::timestamptz IS NULL OR p.chosen_at >= $4) AND ($5::text IS NULL OR $5 = ANY (p.ways))
 ORDER BY p.kind, p.version, p.became, p.chosen_at LIMIT $6 OFFSET $7
