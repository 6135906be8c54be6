-- All lanes that have a pending run, with their heads: a skip scan, from the head of one lane of the index straight to
-- the head of the next. It looks from the beginning of each lane, so that it finds what the marks of a claim would pass
-- by. Runs that somebody has just claimed show here until that claim has committed.
-- $1 kinds, $2 project ids (null: all)
WITH RECURSIVE lane AS (
    SELECT first.*
      FROM unnest($1::text[]) AS served (kind), LATERAL (
          SELECT r.kind, r.project_id, {rank} AS rank, r.run_at
            FROM {schema}.runs AS r
           WHERE r.state = 'pending' AND r.waits_for IS NULL AND r.kind = served.kind
           ORDER BY r.kind, r.project_id, {rank}, r.run_at LIMIT 1) AS first
    UNION ALL
    SELECT next.*
      FROM lane, LATERAL (
          SELECT r.kind, r.project_id, {rank} AS rank, r.run_at
            FROM {schema}.runs AS r
           WHERE r.state = 'pending' AND r.waits_for IS NULL AND r.kind = lane.kind
             AND (r.project_id, {rank}) > (lane.project_id, lane.rank)
           ORDER BY r.project_id, {rank}, r.run_at LIMIT 1) AS next
)
SELECT l.kind, l.project_id, l.rank, least(l.run_at, now()) AS mark, l.run_at <= now() AND paused.until IS NULL AS is_ready,
       date_part('epoch', CASE WHEN paused.until IS NOT NULL THEN paused.until WHEN l.run_at > now() THEN l.run_at ELSE (
           -- Behind what is ready: when the next one is due.
           SELECT r.run_at
             FROM {schema}.runs AS r
            WHERE r.state = 'pending' AND r.waits_for IS NULL AND r.kind = l.kind AND r.project_id = l.project_id
              AND {rank} = l.rank AND r.run_at > now()
            ORDER BY r.kind, r.project_id, {rank}, r.run_at LIMIT 1) END - now()) AS due_in_s,
       date_part('epoch', now() - l.run_at) AS waited_s, coalesce(s.weight, 1) AS weight,
       CASE WHEN (SELECT EXISTS (SELECT FROM {schema}.versions)) THEN {schema}.live_version(l.kind, l.project_id) END AS version,
       limited.by_any OR l.rank & 1 = 1 AS is_limited,
       date_part('epoch', CASE WHEN limited.by_rate THEN ({schema}.room(l.kind, l.project_id)).due_at END - now()) AS token_in_s
  FROM lane AS l LEFT JOIN {schema}.shares AS s ON s.project_id = l.project_id, LATERAL (
      -- 9999: until it is resumed, of which a notification tells.
      SELECT max(coalesce(p.until, '9999-01-01 00:00:00+00')) AS until
        FROM {schema}.pauses AS p
       WHERE p.kind IN ('', l.kind) AND p.project_id IN ('', l.project_id) AND (p.until IS NULL OR p.until > now())) AS paused, LATERAL (
      SELECT count(*) > 0 AS by_any, coalesce(bool_or(m.rate IS NOT NULL), false) AS by_rate
        FROM {schema}.limits AS m
       WHERE m.per <> 'key' AND m.kind IN ('', l.kind) AND m.project_id IN ('', l.project_id)) AS limited
 WHERE $2::text[] IS NULL OR l.project_id = ANY ($2::text[])
