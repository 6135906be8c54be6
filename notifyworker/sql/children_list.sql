-- For readers: the children of a run, live ones by their row. $1 parent, $2 its created_at, $3 behind this position, $4 limit
SELECT c.position, c.child_id AS run_id, c.kind, coalesce(c.state, r.state, 'deleted') AS state, c.started_at, c.settled_at,
       c.error_code, c.error
  FROM {schema}.children AS c LEFT JOIN {schema}.runs AS r ON r.run_id = c.child_id AND c.state IS NULL
 WHERE c.parent_id = $1 AND c.parent_created_at = $2 AND c.position > $3::integer
 ORDER BY c.position LIMIT $4
