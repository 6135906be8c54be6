-- Children and their groups that are older than the retention, and whose parent is kept no longer. $1 limit
WITH bound AS (
    SELECT (((now() AT TIME ZONE 'UTC')::date - (value #>> '{}')::numeric::integer)::timestamp AT TIME ZONE 'UTC') AS at
      FROM {schema}.settings WHERE name = 'history_retention_days'
), of_groups AS (
    DELETE FROM {schema}.child_groups AS d
     WHERE d.ctid = ANY (array(
         SELECT g.ctid FROM {schema}.child_groups AS g
          WHERE g.made_at < (SELECT at FROM bound) AND (g.closed_at IS NOT NULL OR g.last_id IS NULL)
            AND NOT EXISTS (SELECT FROM {schema}.runs AS r WHERE r.run_id = g.parent_id AND r.created_at = g.parent_created_at)
            AND NOT EXISTS (SELECT FROM {schema}.run_history AS h
                             WHERE h.run_id = g.parent_id AND h.created_at = g.parent_created_at)
          LIMIT $1 FOR UPDATE SKIP LOCKED))
)
DELETE FROM {schema}.children AS d
 WHERE d.ctid = ANY (array(
     SELECT c.ctid FROM {schema}.children AS c
      WHERE c.started_at < (SELECT at FROM bound) AND c.state IS NOT NULL
        AND NOT EXISTS (SELECT FROM {schema}.child_groups AS g
                         WHERE g.parent_id = c.parent_id AND g.parent_created_at = c.parent_created_at AND g.closed_at IS NULL)
        AND NOT EXISTS (SELECT FROM {schema}.runs AS r WHERE r.run_id = c.parent_id AND r.created_at = c.parent_created_at)
        AND NOT EXISTS (SELECT FROM {schema}.run_history AS h WHERE h.run_id = c.parent_id AND h.created_at = c.parent_created_at)
      LIMIT $1 FOR UPDATE SKIP LOCKED))
RETURNING d.child_id
