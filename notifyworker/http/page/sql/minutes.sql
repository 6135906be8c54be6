-- Settled runs minute by minute, kind by kind and all together (kind null). Found by the BRIN index. Read in one pass without a
-- sort, since a minute of a drain has many: pickup times are counted in steps of 2 %, which is how exact their percentiles are.
-- $1 from, $2 to (not included)
WITH told AS MATERIALIZED (
    SELECT date_trunc('minute', finished_at) AS minute, kind, state, count(*)::bigint AS runs,
           CASE WHEN attempt = 1 AND started_at IS NOT NULL THEN round(50 * ln(greatest(
               date_part('epoch', started_at - greatest(run_at, created_at)), 1e-6)))::integer END AS step
      FROM {schema}.run_history
     WHERE finished_at >= $1 AND finished_at < $2
     GROUP BY 1, 2, 3, 5
), steps AS (
    SELECT minute, step, sum(sum(runs)) OVER (PARTITION BY minute ORDER BY step) AS upto,
           sum(sum(runs)) OVER (PARTITION BY minute) AS whole
      FROM told WHERE step IS NOT NULL GROUP BY minute, step
), picked AS (
    SELECT minute, ARRAY[exp(min(step) FILTER (WHERE upto >= 0.5 * whole) / 50.0), exp(min(step) FILTER (WHERE upto >= 0.95 * whole) / 50.0),
                         exp(min(step) FILTER (WHERE upto >= 0.99 * whole) / 50.0)]::float8[] AS pickup_s
      FROM steps GROUP BY minute
), counted AS (
    SELECT minute, kind, coalesce(sum(runs) FILTER (WHERE state = 'completed'), 0)::bigint AS completed,
           coalesce(sum(runs) FILTER (WHERE state = 'failed'), 0)::bigint AS failed,
           coalesce(sum(runs) FILTER (WHERE state = 'cancelled'), 0)::bigint AS cancelled
      FROM told GROUP BY GROUPING SETS ((minute, kind), (minute))
)
SELECT counted.*, CASE WHEN kind IS NULL THEN picked.pickup_s END AS pickup_s FROM counted LEFT JOIN picked USING (minute)
