-- What a step of a live run has returned, whatever its place.
-- $1 run_id, $2 name
SELECT s.result
  FROM {schema}.steps AS s
 WHERE s.run_id = $1 AND s.name = $2 AND s.error IS NULL AND NOT s.is_shadow
 ORDER BY s.run_created_at DESC LIMIT 1
