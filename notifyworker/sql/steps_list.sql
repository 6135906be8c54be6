-- The steps of one run, for readers. $1 run_id, $2 its created_at, $3 up to how many bytes a result is shown
SELECT s.position, s.name, s.attempt, s.is_shadow, s.started_at, s.finished_at, s.error, octet_length(s.result::text) AS result_bytes,
       CASE WHEN octet_length(s.result::text) <= $3 THEN s.result END AS result
  FROM {schema}.steps AS s
 WHERE s.run_id = $1 AND s.run_created_at = $2
 ORDER BY s.position
