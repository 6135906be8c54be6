-- Many runs in one statement. Returns an id a run, in order: where another run holds the idempotency key, that one's;
-- null where that was inserted by this very statement, or where the id itself is taken.
-- An element a run: $1 run_id, $2 kind, $3 payload, $4 project_id, $5 priority, $6 run_at, $7 max_attempts, $8 timeout,
-- $9 expires_at, $10 idempotency_key, $11 is_shadow, $12 headers, $13 concurrency_key
WITH given AS MATERIALIZED (
    SELECT coalesce(r.run_id, {schema}.uuid7()) AS run_id, r.kind, r.payload, r.project_id, r.priority,
           coalesce(r.run_at, now()) AS run_at, r.max_attempts, r.timeout, r.expires_at, r.idempotency_key, r.is_shadow,
           r.headers, r.concurrency_key, r.place
      FROM unnest($1::uuid[], $2::text[], $3::jsonb[], $4::text[], $5::smallint[], $6::timestamptz[], $7::smallint[],
          $8::interval[], $9::timestamptz[], $10::text[], $11::boolean[], $12::jsonb[], $13::text[]) WITH ORDINALITY
          AS r (run_id, kind, payload, project_id, priority, run_at, max_attempts, timeout, expires_at,
                idempotency_key, is_shadow, headers, concurrency_key, place)
), inserted AS (
    INSERT INTO {schema}.runs (run_id, kind, payload, project_id, priority, run_at, max_attempts, timeout, expires_at,
        idempotency_key, is_shadow, headers, concurrency_key)
    SELECT run_id, kind, payload, project_id, priority, run_at, max_attempts, timeout, expires_at,
           idempotency_key, is_shadow, headers, concurrency_key
      FROM given
     WHERE idempotency_key IS NULL OR is_shadow OR {schema}.key_holder(project_id, kind, idempotency_key) IS NULL
     ORDER BY place
    ON CONFLICT DO NOTHING  -- by no columns: a producer may read none of them
    RETURNING run_id
)
SELECT coalesce(inserted.run_id, {schema}.key_holder(project_id, kind, idempotency_key)) AS run_id, inserted.run_id IS NULL AS existing
  FROM given LEFT JOIN inserted ON inserted.run_id = given.run_id ORDER BY given.place
