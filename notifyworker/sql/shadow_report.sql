-- What comparing has found, a row a kind and version.
-- $1 kind, $2 version, $3 project_id (null: any), $4 chosen since then (null: ever)
WITH pair AS (
    SELECT p.kind, p.version, p.became, p.ways, p.live_s, p.shadow_s, p.shadow_run_id,
           -- The mean of logarithms: twice as slow and twice as fast weigh the same. Below a microsecond nothing was measured.
           ln(greatest(p.shadow_s, 1e-6) / greatest(p.live_s, 1e-6)) AS times
      FROM {schema}.shadow_pairs AS p
     WHERE ($1::text IS NULL OR p.kind = $1) AND ($2::text IS NULL OR p.version = $2)
       AND ($3::text IS NULL OR p.project_id = $3) AND ($4::timestamptz IS NULL OR p.chosen_at >= $4)
)
SELECT kind, version, count(*) FILTER (WHERE became IN ('same', 'different')) AS compared,
       count(*) FILTER (WHERE became = 'same') AS same, count(*) FILTER (WHERE became = 'different') AS different,
       count(*) FILTER (WHERE became = 'gone') AS gone, count(*) FILTER (WHERE became = 'interrupted') AS interrupted,
       count(*) FILTER (WHERE became IS NULL AND shadow_run_id IS NULL) AS waiting,
       count(*) FILTER (WHERE became IS NULL AND shadow_run_id IS NOT NULL) AS executed,
       count(*) FILTER (WHERE 'outcome' = ANY (ways)) AS outcome, count(*) FILTER (WHERE 'failure' = ANY (ways)) AS failure,
       count(*) FILTER (WHERE 'result' = ANY (ways)) AS result, count(*) FILTER (WHERE 'effects' = ANY (ways)) AS effects,
       count(*) FILTER (WHERE 'effects_unrecorded' = ANY (ways)) AS effects_unrecorded,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY live_s) FILTER (WHERE times IS NOT NULL) AS live_s,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY shadow_s) FILTER (WHERE times IS NOT NULL) AS shadow_s,
       count(times) AS timed, avg(times) AS times, stddev_samp(times) AS times_deviation,
       coalesce((SELECT sum(m.capped + coalesce((SELECT sum(s.runs) FROM {schema}.mirror_skips AS s WHERE s.mirror_id = m.mirror_id), 0))
                   FROM {schema}.mirrors AS m
                  WHERE m.kind = pair.kind AND m.version = pair.version AND ($3::text IS NULL OR m.project_id IN ('', $3))), 0)::bigint AS capped,
       (SELECT v.version FROM {schema}.versions AS v WHERE v.kind = pair.kind AND v.project_id IN ('', coalesce($3, ''))
         ORDER BY v.project_id DESC LIMIT 1) AS live_version
  FROM pair GROUP BY kind, version ORDER BY kind, version
