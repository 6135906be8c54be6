-- How long the newest runs of each kind waited and took. $1 kinds, $2 how many of each. A kind is asked for as a range of one
-- and in the order of its index: as an equal of an unknown one, it is looked for among all of history by the order of time.
SELECT k.kind, count(*)::bigint AS runs,
       percentile_disc(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY r.pickup_s) AS pickup_s,
       percentile_disc(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY r.took_s) AS took_s
  FROM unnest($1::text[]) AS k (kind), LATERAL (
      SELECT CASE WHEN h.attempt = 1 THEN extract(epoch FROM h.started_at - greatest(h.run_at, h.created_at))::float8 END AS pickup_s,
             extract(epoch FROM h.finished_at - h.started_at)::float8 AS took_s
        FROM (SELECT attempt, started_at, run_at, created_at, finished_at FROM {schema}.run_history
               WHERE kind >= k.kind COLLATE "C" AND kind <= k.kind COLLATE "C" ORDER BY kind DESC, run_id DESC LIMIT $2) AS h
       WHERE h.started_at IS NOT NULL) AS r
 GROUP BY k.kind
