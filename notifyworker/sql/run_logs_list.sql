-- What is kept of a run's log, a row a lease. lost_after: its worker was gone before it could write what came later.
-- $1 run_id, $2 its created_at
SELECT l.attempt, l.lease_token, l.lines, l.cut, l.written_at,
       CASE WHEN NOT l.is_whole AND NOT EXISTS (
           SELECT FROM {schema}.runs AS r
            WHERE r.run_id = l.run_id AND r.created_at = l.run_created_at AND r.lease_token = l.lease_token AND r.state = 'running')
       THEN l.written_at END AS lost_after
  FROM {schema}.run_logs AS l
 WHERE l.run_id = $1 AND l.run_created_at = $2
 ORDER BY l.lease_token
