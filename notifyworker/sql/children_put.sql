-- Writes down children of a run that this worker holds, before they are inserted. Returns how many; 0: it is another's.
-- $1 run_id, $2 lease_token, $3 lease_owner, then an element a child: $4 child_id, $5 position, $6 kind, $7 is_detached
WITH put AS (
    INSERT INTO {schema}.children (child_id, parent_id, parent_created_at, position, is_detached, project_id, kind)
    SELECT n.child_id, r.run_id, r.created_at, n.position, n.is_detached, r.project_id, n.kind
      FROM {schema}.runs AS r,
           unnest($4::uuid[], $5::integer[], $6::text[], $7::boolean[]) AS n (child_id, position, kind, is_detached)
     WHERE r.run_id = $1 AND r.lease_token = $2 AND r.lease_owner = $3 AND r.state = 'running'
    RETURNING 1
)
SELECT count(*)::integer AS put FROM put
