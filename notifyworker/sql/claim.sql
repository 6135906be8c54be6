-- pending -> running, for up to $5 runs, each with a fresh lease. Also tells when the next run is due, if it took all
-- that was ready.
-- $1 kinds, $2 their max_attempts, $3 their timeouts in seconds (null: none), $4 project ids (null: all), $5 limit,
-- $6 lease_owner, $7 lease in seconds, $8 whether every run is made a shadow run
WITH RECURSIVE served AS (
    SELECT kind FROM unnest($1::text[]) AS kind
), lane AS (
    -- A skip scan: from the head of one lane of the index straight to the head of the next.
    SELECT first.*
      FROM served, LATERAL (
          SELECT r.kind, r.project_id, -r.priority::int AS rank, r.run_at
            FROM {schema}.runs AS r
           WHERE r.state = 'pending' AND r.kind = served.kind
           ORDER BY r.kind, r.project_id, -r.priority::int, r.run_at LIMIT 1) AS first
    UNION ALL
    SELECT next.*
      FROM lane, LATERAL (
          SELECT r.kind, r.project_id, -r.priority::int AS rank, r.run_at
            FROM {schema}.runs AS r
           WHERE r.state = 'pending' AND r.kind = lane.kind
             AND (r.project_id, -r.priority::int) > (lane.project_id, lane.rank)
           ORDER BY r.project_id, -r.priority::int, r.run_at LIMIT 1) AS next
), open_lane AS (
    SELECT * FROM lane WHERE $4::text[] IS NULL OR project_id = ANY ($4::text[])
), picked AS MATERIALIZED (
    -- Lanes are read one after the other, and the outer LIMIT stops the reading: no row is locked that is not taken.
    SELECT ready.run_id
      FROM (SELECT * FROM open_lane WHERE run_at <= now() ORDER BY rank, run_at) AS l, LATERAL (
          SELECT r.run_id
            FROM {schema}.runs AS r
           WHERE r.state = 'pending' AND r.kind = l.kind AND r.project_id = l.project_id
             AND -r.priority::int = l.rank AND r.run_at <= now()
           ORDER BY r.run_at, r.run_id LIMIT $5
             FOR UPDATE SKIP LOCKED) AS ready
     LIMIT $5
), claimed AS (
    UPDATE {schema}.runs AS r
       SET state = 'running', attempt = r.attempt + 1, lease_token = r.lease_token + 1, lease_owner = $6,
           lease_expires_at = now() + $7::float8 * interval '1 s', started_at = now(),
           max_attempts = coalesce(r.max_attempts, ($2::smallint[])[array_position($1::text[], r.kind)]),
           timeout = coalesce(r.timeout, ($3::float8[])[array_position($1::text[], r.kind)] * interval '1 s'),
           is_shadow = r.is_shadow OR $8::boolean,
           shadow_by = CASE WHEN r.is_shadow THEN 'run' WHEN $8::boolean THEN 'worker' END
     -- An array and not a join: while statistics say that the table is empty, a join may read all of it instead.
     WHERE r.run_id = ANY (array(SELECT run_id FROM picked))
       -- The CASE keeps this test away from the planner, who would read all of runs_ready in place of the primary key.
       AND CASE WHEN r.state = 'pending' THEN true END
    RETURNING r.*
), due AS (
    SELECT min(later.run_at) - now() AS due_in
      FROM open_lane AS l, LATERAL (
          SELECT r.run_at
            FROM {schema}.runs AS r
           WHERE r.state = 'pending' AND r.kind = l.kind AND r.project_id = l.project_id
             AND -r.priority::int = l.rank AND r.run_at > now()
           ORDER BY r.run_at LIMIT 1) AS later
     WHERE (SELECT count(*) FROM picked) < $5
)
SELECT extract(epoch FROM due.due_in)::float8 AS due_in_s,
       c.run_id, c.project_id, c.kind, c.payload, c.attempt, c.max_attempts, c.priority, c.is_shadow, c.headers,
       c.lease_token, extract(epoch FROM c.timeout)::float8 AS timeout_s, coalesce(c.expires_at <= now(), false) AS expired,
       extract(epoch FROM now() - greatest(c.run_at, c.created_at))::float8 AS waited_s
  FROM due LEFT JOIN claimed AS c ON true
 ORDER BY -c.priority::int, c.run_at, c.run_id
