-- Inserts children that were written down.
-- $1 their parent, $2 its project_id, then an element a child: $3 run_id, $4 kind, $5 payload, $6 priority, $7 run_at (null:
-- now), $8 max_attempts, $9 timeout, $10 expires_at, $11 concurrency_key, $12 headers
INSERT INTO {schema}.runs (parent_id, project_id, run_id, kind, payload, priority, run_at, max_attempts, timeout, expires_at,
       concurrency_key, headers)
SELECT $1, $2, n.run_id, n.kind, n.payload, n.priority, coalesce(n.run_at, now()), n.max_attempts, n.timeout, n.expires_at,
       n.concurrency_key, n.headers
  FROM unnest($3::uuid[], $4::text[], $5::jsonb[], $6::smallint[], $7::timestamptz[], $8::smallint[], $9::interval[],
              $10::timestamptz[], $11::text[], $12::jsonb[])
       AS n (run_id, kind, payload, priority, run_at, max_attempts, timeout, expires_at, concurrency_key, headers)
