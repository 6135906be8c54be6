-- The outcomes of a group, in the order in which they were started, page by page.
-- $1 the parent, $2 number, $3 behind this position, $4 limit
SELECT c.position, c.child_id, c.kind, c.state, c.error_code, c.error, c.result
  FROM {schema}.runs AS r
  JOIN {schema}.child_groups AS g ON g.parent_id = r.run_id AND g.parent_created_at = r.created_at AND g.number = $2::integer
  JOIN {schema}.children AS c
    ON c.parent_id = g.parent_id AND c.parent_created_at = g.parent_created_at AND c.position > $3::integer
   AND c.position <@ g.positions
 WHERE r.run_id = $1
 ORDER BY c.position LIMIT $4
