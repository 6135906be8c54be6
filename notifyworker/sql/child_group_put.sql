-- Writes down a group of children of a run that this worker holds. No row: it is another's.
-- $1 run_id, $2 lease_token, $3 lease_owner, $4 number, $5 positions, $6 on_failure, of its last run $7 run_id, $8 position,
-- $9 kind, $10 payload, $11 headers (all null: there is none), $12 seconds that its parent waits (null: for ever)
INSERT INTO {schema}.child_groups (parent_id, parent_created_at, number, project_id, positions, on_failure, last_id,
       last_position, last_kind, last_payload, last_headers, ends_at)
SELECT r.run_id, r.created_at, $4::integer, r.project_id, $5::text::int4multirange, $6::text, $7::uuid, $8::integer, $9::text,
       $10::jsonb, $11::jsonb, clock_timestamp() + $12::float8 * interval '1 s'
  FROM {schema}.runs AS r
 WHERE r.run_id = $1 AND r.lease_token = $2 AND r.lease_owner = $3 AND r.state = 'running'
RETURNING number
