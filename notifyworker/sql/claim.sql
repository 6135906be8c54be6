-- pending -> running, for up to $7 runs, each with a fresh lease.
-- An element a lane, in the order in which they are read: $1 kind, $2 project_id, $3 rank (the negative priority), $4 the
-- mark from which it is read, and $12 how many are taken of it at most. An element a kind: $5 kind, $6 the handler's max_attempts, $7 its timeout in seconds (null:
-- none). $8 limit, $9 lease_owner, $10 lease in seconds, $11 whether every run is made a shadow run, $13 the version that is
-- claimed for (null: kinds whose live version has no name)
WITH lane AS (
    SELECT * FROM unnest($1::text[], $2::text[], $3::integer[], $4::timestamptz[], $12::bigint[])
        AS l (kind, project_id, rank, mark, most)
     -- As a rule nothing is paused or limited, and no version has a name, which is found out once a claim and not once a lane.
     WHERE ((SELECT NOT EXISTS (SELECT FROM {schema}.pauses)) OR NOT EXISTS (
         SELECT FROM {schema}.pauses AS p
          WHERE p.kind IN ('', l.kind) AND p.project_id IN ('', l.project_id) AND (p.until IS NULL OR p.until > now())))
       -- Nor what counts against a limit or has a key: that is claim_limited's, also in the moment before this worker
       -- knows of the limit.
       AND l.rank & 1 = 0 AND ((SELECT NOT EXISTS (SELECT FROM {schema}.limits)) OR NOT EXISTS (
         SELECT FROM {schema}.limits AS m
          WHERE m.per <> 'key' AND m.kind IN ('', l.kind) AND m.project_id IN ('', l.project_id)))
       -- What this worker took for the live version may have been switched since its last look.
       AND (($13::text IS NULL AND (SELECT NOT EXISTS (SELECT FROM {schema}.versions)))
            OR {schema}.live_version(l.kind, l.project_id) IS NOT DISTINCT FROM $13::text)
), picked AS MATERIALIZED (
    -- Lanes are read one after the other, and the outer LIMIT stops the reading: no row is locked that is not taken.
    SELECT ready.place
      FROM lane AS l, LATERAL (
          SELECT r.ctid AS place
            FROM {schema}.runs AS r
           WHERE r.state = 'pending' AND r.waits_for IS NULL AND r.kind = l.kind AND r.project_id = l.project_id
             AND {rank} = l.rank AND r.run_at >= l.mark AND r.run_at <= now()
           -- All of the index's columns: under a policy of rows (schema/0008) the planner does not conclude from the
           -- tests above that the first three are the same throughout, and would sort.
           ORDER BY r.kind, r.project_id, {rank}, r.run_at, r.run_id LIMIT l.most
             FOR UPDATE SKIP LOCKED) AS ready
     LIMIT $8
)
UPDATE {schema}.runs AS r
   SET state = 'running', attempt = r.attempt + 1, lease_token = r.lease_token + 1, lease_owner = $9,
       lease_expires_at = now() + $10::float8 * interval '1 s', started_at = now(),
       max_attempts = coalesce(r.max_attempts, ($6::smallint[])[array_position($5::text[], r.kind)]),
       timeout = coalesce(r.timeout, ($7::float8[])[array_position($5::text[], r.kind)] * interval '1 s'),
       is_shadow = r.is_shadow OR $11::boolean,
       shadow_by = CASE WHEN r.is_shadow THEN 'run' WHEN $11::boolean THEN 'worker' END
 -- By the place at which the row was locked a moment ago: a second look-up by run_id costs a tenth of the claim. A row
 -- that moved since this statement began is not seen there; it is claimed the next time. An array and not a join: while
 -- statistics say that the table is empty, a join may read all of it instead.
 WHERE r.ctid = ANY (array(SELECT place FROM picked))
   -- The CASE keeps this test away from the planner, who would read all of runs_ready in place of the one row.
   AND CASE WHEN r.state = 'pending' THEN true END
RETURNING r.run_id, r.lease_token, r.kind, r.project_id, r.priority, date_part('epoch', r.run_at), r.payload, r.headers, r.attempt,
          r.max_attempts, r.is_shadow, date_part('epoch', r.timeout), r.expires_at <= now(),
          date_part('epoch', now() - greatest(r.run_at, r.created_at))
