-- Take-overs of the last hour: by whom they were taken from and why
SELECT taken_from, reason, count(*)::bigint AS runs, count(*) FILTER (WHERE became = 'failed')::bigint AS failed, max(at) AS last_at
  FROM (SELECT * FROM {schema}.reaps ORDER BY reap_id DESC LIMIT 5000) AS r
 WHERE at >= now() - interval '1 hour' GROUP BY taken_from, reason ORDER BY last_at DESC LIMIT 20
