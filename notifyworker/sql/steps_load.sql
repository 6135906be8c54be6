-- The recorded steps of a run that this worker holds; one row of nulls where there are none, no row where it is another's.
-- $1 run_id, $2 lease_token, $3 lease_owner, $4 up to how many bytes a result comes along at once
SELECT s.position, s.name, coalesce(octet_length(s.result::text) <= $4, true) AS is_here,
       CASE WHEN octet_length(s.result::text) <= $4 THEN s.result END AS result
  FROM {schema}.runs AS r
  LEFT JOIN {schema}.steps AS s
    ON s.run_id = r.run_id AND s.run_created_at = r.created_at AND s.error IS NULL AND (r.is_shadow OR NOT s.is_shadow)
 WHERE r.run_id = $1 AND r.lease_token = $2 AND r.lease_owner = $3 AND r.state = 'running'
