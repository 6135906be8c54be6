-- What running runs say of themselves. Returns those that were held and not locked by somebody for a moment.
-- $1 lease_owner, then an element a run: $2 run_id, $3 lease_token, $4 progress
WITH mine AS MATERIALIZED (
    SELECT r.ctid AS place, o.progress
      FROM unnest($2::uuid[], $3::bigint[], $4::jsonb[]) AS o (run_id, lease_token, progress), LATERAL (
          SELECT r.ctid
            FROM {schema}.runs AS r
           WHERE r.run_id = o.run_id AND r.lease_token = o.lease_token AND r.lease_owner = $1 AND r.state = 'running'
             FOR UPDATE SKIP LOCKED) AS r
)
UPDATE {schema}.runs AS r SET progress = mine.progress FROM mine
 WHERE r.ctid = mine.place AND CASE WHEN r.state = 'running' THEN true END
RETURNING r.run_id
