-- running -> pending: a retry, a snooze or a release. The producer's value of is_shadow is restored.
-- $1 lease_owner, then an element a run: $2 run_id, $3 lease_token, $4 seconds until it is due (null: at once, in its
-- old place), $5 whether it used up an attempt, $6 entry for errors,
-- $7 its last progress, where that is not in its row yet
WITH outcome AS (
    SELECT * FROM unnest($2::uuid[], $3::bigint[], $4::float8[], $5::boolean[], $6::jsonb[], $7::jsonb[])
        AS o (run_id, lease_token, delay_s, counts, error, progress)
), mine AS MATERIALIZED (
    SELECT r.run_id, r.is_limited, o.counts, o.error, coalesce(o.progress, r.progress) AS progress,
           CASE WHEN o.delay_s IS NULL THEN r.run_at ELSE now() + o.delay_s * interval '1 s' END AS run_at,
           CASE WHEN o.error IS NULL THEN r.errors ELSE {schema}.with_error(r.errors, o.error
               || jsonb_build_object('started_at', to_char(r.started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))) END AS errors
      FROM outcome AS o, LATERAL (
          SELECT r.run_id, r.run_at, r.errors, r.started_at, r.progress, r.is_limited
            FROM {schema}.runs AS r
           WHERE r.run_id = o.run_id AND r.lease_token = o.lease_token AND r.lease_owner = $1 AND r.state = 'running'
             FOR UPDATE SKIP LOCKED) AS r
), back AS (
    UPDATE {schema}.runs AS r
       SET state = 'pending', lease_owner = NULL, lease_expires_at = NULL, started_at = NULL, is_limited = false,
           attempt = r.attempt - (NOT mine.counts)::int, run_at = mine.run_at, errors = mine.errors, progress = mine.progress,
           is_shadow = r.is_shadow AND r.shadow_by IS DISTINCT FROM 'worker', shadow_by = nullif(r.shadow_by, 'worker')
      FROM mine
     WHERE r.run_id = mine.run_id AND r.run_id = ANY (array(SELECT run_id FROM mine))
    RETURNING r.run_id, r.run_at
), freed AS (
    -- By a look-up for each that has places at all, and not by a join, which may read all places for none.
    DELETE FROM {schema}.places AS p
     WHERE p.ctid = ANY (array(
        SELECT held.place_at FROM mine AS r, LATERAL (
            SELECT h.ctid AS place_at FROM {schema}.places AS h WHERE h.run_id = r.run_id AND NOT h.lingers OFFSET 0) AS held
         WHERE r.is_limited))
)
SELECT run_id, (SELECT {schema}.announce((SELECT min(run_at) FROM back))) AS announced FROM back
