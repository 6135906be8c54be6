-- Kind by kind: how many runs are due, how many are for later, how many are executed, and for how long the oldest that is
-- due has been. Lane by lane, as a claim reads them, so that runs for later are not read to find those that are due.
-- $1 how many are counted, shared by the kinds, each at least 100; $2 how many lanes are looked at
WITH RECURSIVE lane AS (
    (SELECT r.kind, r.project_id, {rank} AS rank, r.run_at
       FROM {schema}.runs AS r
      WHERE r.state = 'pending' AND r.waits_for IS NULL
      ORDER BY r.kind, r.project_id, {rank}, r.run_at LIMIT 1)
    UNION ALL
    SELECT next.*
      FROM lane, LATERAL (
          SELECT r.kind, r.project_id, {rank} AS rank, r.run_at
            FROM {schema}.runs AS r
           WHERE r.state = 'pending' AND r.waits_for IS NULL
             AND (r.kind, r.project_id, {rank}) > (lane.kind, lane.project_id, lane.rank)
           ORDER BY r.kind, r.project_id, {rank}, r.run_at LIMIT 1) AS next
), waiting AS MATERIALIZED (
    SELECT l.kind, array_agg(l.project_id) AS project_ids, array_agg(l.rank) AS ranks,
           greatest(0, date_part('epoch', now() - min(l.run_at))) AS oldest_s,
           greatest(100, $1::bigint / count(*) OVER ()) AS cap
      FROM (SELECT kind, project_id, rank, run_at FROM lane LIMIT $2) AS l
     GROUP BY l.kind
), running AS (
    SELECT r.kind, count(*) AS running
      FROM (SELECT kind FROM {schema}.runs WHERE lease_expires_at IS NOT NULL LIMIT $1) AS r
     GROUP BY r.kind
)
SELECT coalesce(w.kind, g.kind) AS kind, coalesce(due.runs, 0) AS ready, coalesce(later.runs, 0) AS later,
       coalesce(g.running, 0) AS running, coalesce(w.oldest_s, 0) AS oldest_s
  FROM waiting AS w
  LEFT JOIN LATERAL (
      SELECT count(*) AS runs FROM (
          SELECT FROM unnest(w.project_ids, w.ranks) AS l (project_id, rank), LATERAL (
              SELECT FROM {schema}.runs AS r
               WHERE r.state = 'pending' AND r.waits_for IS NULL
                 AND r.kind = w.kind AND r.project_id = l.project_id AND {rank} = l.rank AND r.run_at <= now()
               ORDER BY r.kind, r.project_id, {rank}, r.run_at LIMIT w.cap) AS r
           LIMIT w.cap) AS counted) AS due ON true
  LEFT JOIN LATERAL (
      SELECT count(*) AS runs FROM (
          SELECT FROM unnest(w.project_ids, w.ranks) AS l (project_id, rank), LATERAL (
              SELECT FROM {schema}.runs AS r
               WHERE r.state = 'pending' AND r.waits_for IS NULL
                 AND r.kind = w.kind AND r.project_id = l.project_id AND {rank} = l.rank AND r.run_at > now()
               ORDER BY r.kind, r.project_id, {rank}, r.run_at LIMIT w.cap) AS r
           LIMIT w.cap) AS counted) AS later ON true
  FULL JOIN running AS g ON g.kind = w.kind
