-- What comparing has found. An element a pair: $1 live run, $2 version, $3 what it became, $4 ways to differ as JSON,
-- $5 the difference for people, $6 the copy's state, $7 how long it took
UPDATE {schema}.shadow_pairs AS p
   SET became = n.became, ways = ARRAY(SELECT jsonb_array_elements_text(n.ways)), diff = n.diff, shadow_state = n.state,
       shadow_s = n.took_s, compared_at = now()
  FROM unnest($1::uuid[], $2::text[], $3::text[], $4::jsonb[], $5::text[], $6::text[], $7::float8[])
       AS n (live_run_id, version, became, ways, diff, state, took_s)
 WHERE p.live_run_id = n.live_run_id AND p.version = n.version
