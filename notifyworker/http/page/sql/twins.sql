-- What was compared with a run: its copies in shadow, or what it is a copy of. A pair whose copy is not made yet has no twin.
SELECT CASE WHEN live_run_id = $1 THEN shadow_run_id ELSE live_run_id END AS run_id, live_run_id = $1 AS is_copy, version, became
  FROM {schema}.shadow_pairs
 WHERE (live_run_id = $1 AND shadow_run_id IS NOT NULL) OR shadow_run_id = $1
 ORDER BY chosen_at DESC LIMIT 20
