-- Settled runs minute by minute, kind by kind and all together (kind null). Found by the BRIN index.
-- $1 from, $2 to (not included)
SELECT date_trunc('minute', finished_at) AS minute, kind,
       count(*) FILTER (WHERE state = 'completed')::bigint AS completed,
       count(*) FILTER (WHERE state = 'failed')::bigint AS failed,
       count(*) FILTER (WHERE state = 'cancelled')::bigint AS cancelled,
       percentile_disc(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (
           ORDER BY CASE WHEN attempt = 1 THEN extract(epoch FROM started_at - greatest(run_at, created_at))::float8 END) AS pickup_s
  FROM {schema}.run_history
 WHERE finished_at >= $1 AND finished_at < $2
 GROUP BY GROUPING SETS ((1, kind), (1))
