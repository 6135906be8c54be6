-- The recorded children of a run that this worker holds; one row of nulls where there are none, no row where it is another's.
-- $1 run_id, $2 lease_token, $3 lease_owner
SELECT c.position, c.kind, c.child_id
  FROM {schema}.runs AS r
  LEFT JOIN {schema}.children AS c ON c.parent_id = r.run_id AND c.parent_created_at = r.created_at
 WHERE r.run_id = $1 AND r.lease_token = $2 AND r.lease_owner = $3 AND r.state = 'running'
 ORDER BY c.position
