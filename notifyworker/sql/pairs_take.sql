-- Pairs of these kinds whose copy is settled and that are not compared yet, with both outcomes. Two workers may compare the
-- same: they find the same.
-- $1 kinds, $2 limit
SELECT p.live_run_id, p.version, p.kind, p.live_s, s.state AS shadow_state, s.result AS shadow_result, s.effects AS shadow_effects,
       s.error_code AS shadow_error_code, s.errors -> -1 ->> 'message' AS shadow_message,
       extract(epoch FROM s.finished_at - s.started_at)::float8 AS shadow_s,
       l.state AS live_state, l.result AS live_result, l.effects AS live_effects, l.error_code AS live_error_code,
       l.errors -> -1 ->> 'message' AS live_message
  FROM (SELECT q.live_run_id, q.version FROM unnest($1::text[]) AS k (kind), LATERAL (
            SELECT c.live_run_id, c.version
              FROM {schema}.shadow_pairs AS c
             WHERE c.shadow_run_id IS NOT NULL AND c.became IS NULL AND c.kind = k.kind
               AND NOT EXISTS (SELECT FROM {schema}.runs AS r WHERE r.run_id = c.shadow_run_id)
             LIMIT $2) AS q
         LIMIT $2) AS due
  JOIN {schema}.shadow_pairs AS p ON p.live_run_id = due.live_run_id AND p.version = due.version
  LEFT JOIN LATERAL (
      SELECT h.* FROM {schema}.run_history AS h WHERE h.run_id = p.shadow_run_id ORDER BY h.finished_at DESC LIMIT 1) AS s ON true
  LEFT JOIN LATERAL (
      SELECT h.* FROM {schema}.run_history AS h WHERE h.run_id = p.live_run_id ORDER BY h.finished_at DESC LIMIT 1) AS l ON true
