-- What is left of debounced runs that are settled. $1 limit
DELETE FROM {schema}.debounces AS d
 WHERE d.ctid = ANY (array(
     SELECT e.ctid FROM {schema}.debounces AS e
      WHERE e.due_at < now() - interval '1 minute' AND NOT EXISTS (SELECT FROM {schema}.runs AS r WHERE r.run_id = e.run_id)
      ORDER BY e.due_at LIMIT $1 FOR UPDATE OF e SKIP LOCKED))
   AND CASE WHEN d.due_at < now() - interval '1 minute' THEN true END
RETURNING d.run_id
