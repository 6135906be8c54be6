-- Steps that are older than the retention and belong to no run any more. $1 limit
DELETE FROM {schema}.steps AS d
 WHERE d.ctid = ANY (array(
     SELECT s.ctid FROM {schema}.steps AS s
      WHERE s.finished_at < (SELECT (((now() AT TIME ZONE 'UTC')::date - (value #>> '{}')::numeric::integer)::timestamp AT TIME ZONE 'UTC')
                               FROM {schema}.settings WHERE name = 'history_retention_days')
        AND NOT EXISTS (SELECT FROM {schema}.runs AS r WHERE r.run_id = s.run_id AND r.created_at = s.run_created_at)
        AND NOT EXISTS (SELECT FROM {schema}.run_history AS h WHERE h.run_id = s.run_id AND h.created_at = s.run_created_at)
      ORDER BY s.finished_at LIMIT $1 FOR UPDATE SKIP LOCKED))
RETURNING d.run_id
