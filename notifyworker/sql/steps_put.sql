-- Records steps, each only while this worker holds its run's lease. Returns those that it recorded; recorded again, as after
-- a lost answer, they are the same; and what a step raised never takes the place of what was recorded of it (whoever raised
-- it may not have known of a commit). The run is locked, so that nobody takes it over between this look and this commit.
-- $1 lease_owner, then an element a step: $2 run_id, $3 lease_token, $4 position, $5 name, $6 how many seconds it took,
-- $7 result, $8 what it raised
INSERT INTO {schema}.steps AS s (run_id, run_created_at, started_at, finished_at, lease_token, position, attempt, is_shadow,
       project_id, name, error, result)
SELECT r.run_id, r.created_at, greatest(r.started_at, clock_timestamp() - n.took_s * interval '1 s'), clock_timestamp(),
       r.lease_token, n.position, r.attempt, r.is_shadow, r.project_id, n.name, n.error, n.result::json
  FROM unnest($2::uuid[], $3::bigint[], $4::smallint[], $5::text[], $6::float8[], $7::text[], $8::text[])
       AS n (run_id, lease_token, position, name, took_s, result, error), LATERAL (
      SELECT r.run_id, r.created_at, r.started_at, r.lease_token, r.attempt, r.is_shadow, r.project_id
        FROM {schema}.runs AS r
       WHERE r.run_id = n.run_id AND r.lease_token = n.lease_token AND r.lease_owner = $1 AND r.state = 'running'
         FOR UPDATE SKIP LOCKED) AS r
    ON CONFLICT ON CONSTRAINT steps_pkey DO UPDATE
   SET (started_at, finished_at, lease_token, attempt, is_shadow, name, error, result) = (
       SELECT s.started_at, s.finished_at, s.lease_token, s.attempt, s.is_shadow, s.name, s.error, s.result
        WHERE excluded.error IS NOT NULL AND s.error IS NULL AND NOT s.is_shadow
        UNION ALL
       SELECT excluded.started_at, excluded.finished_at, excluded.lease_token, excluded.attempt, excluded.is_shadow,
              excluded.name, excluded.error, excluded.result
        WHERE NOT (excluded.error IS NOT NULL AND s.error IS NULL AND NOT s.is_shadow))
RETURNING s.run_id, s.position
