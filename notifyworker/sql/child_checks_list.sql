-- Parents that have to be looked at, each once. $1 limit
SELECT c.parent_id, c.parent_created_at, array_agg(c.check_id) AS check_ids
  FROM (SELECT * FROM {schema}.child_checks ORDER BY check_id LIMIT $1) AS c
 GROUP BY c.parent_id, c.parent_created_at
