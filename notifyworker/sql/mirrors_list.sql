-- All rules, with what became of what they chose.
SELECT m.kind, nullif(m.project_id, '') AS project_id, m.version, m.percent, m.until, m.per_hour, m.changed_at,
       CASE WHEN m.hour = date_trunc('hour', now(), 'UTC') THEN m.in_hour ELSE 0 END AS in_hour,
       m.capped + coalesce((SELECT sum(s.runs) FROM {schema}.mirror_skips AS s WHERE s.mirror_id = m.mirror_id), 0)::bigint AS capped,
       (SELECT count(*) FROM (
           SELECT FROM {schema}.shadow_pairs AS p
            WHERE p.shadow_run_id IS NULL AND p.became IS NULL AND p.kind = m.kind AND p.version = m.version
              AND p.mirror_id = m.mirror_id LIMIT 10000) AS w) AS waiting
  FROM {schema}.mirrors AS m ORDER BY m.kind, m.project_id, m.version
