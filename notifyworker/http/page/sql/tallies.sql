-- How many runs of each state fit a filter, among the newest $8 live and $8 settled ones; is_all says that there are no more.
-- $1 kind, $2 project_id, $3 worker, $4 is_shadow, $5 inserted from, $6 inserted until, $7 text
SELECT state, count(*) FILTER (
           WHERE ($1::text IS NULL OR kind = $1) AND ($2::text IS NULL OR project_id = $2) AND ($3::text IS NULL OR owner = $3)
             AND ($4::boolean IS NULL OR is_shadow = $4) AND ($5::timestamptz IS NULL OR created_at >= $5)
             AND ($6::timestamptz IS NULL OR created_at < $6)
             AND ($7::text IS NULL OR strpos(payload::text, $7) > 0 OR strpos(errors::text, $7) > 0 OR idempotency_key = $7
                  OR concurrency_key = $7))::bigint AS runs,
       sum(count(*)) OVER (PARTITION BY is_live)::bigint < $8 AS is_all
  FROM (
      (SELECT true AS is_live, state, kind, project_id, lease_owner AS owner, is_shadow, created_at, payload, errors,
              idempotency_key, concurrency_key
         FROM {schema}.runs ORDER BY run_id DESC LIMIT $8)
      UNION ALL
      (SELECT false, state, kind, project_id, settled_by, is_shadow, created_at, payload, errors, idempotency_key, concurrency_key
         FROM {schema}.run_history ORDER BY run_id DESC LIMIT $8)) AS r
 GROUP BY is_live, state
