-- The recorded groups of a run's children, as children_load.sql.
-- $1 run_id, $2 lease_token, $3 lease_owner
SELECT g.number, g.positions::text AS positions, g.on_failure, g.last_id, g.last_kind
  FROM {schema}.runs AS r
  LEFT JOIN {schema}.child_groups AS g ON g.parent_id = r.run_id AND g.parent_created_at = r.created_at
 WHERE r.run_id = $1 AND r.lease_token = $2 AND r.lease_owner = $3 AND r.state = 'running'
 ORDER BY g.number
