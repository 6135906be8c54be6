-- The net: parents of which no child is live that they wait for, and to whom nobody has said so; and groups of parents that
-- wait no longer. $1 behind this parent_id and $2 number, $3 limit
SELECT g.parent_id, g.parent_created_at,
       g.last_id IS NULL AND NOT EXISTS (
           SELECT FROM {schema}.runs AS r WHERE r.run_id = g.parent_id AND r.created_at = g.parent_created_at) AS is_over,
       NOT EXISTS (
           SELECT FROM {schema}.children AS c JOIN {schema}.runs AS r ON r.run_id = c.child_id
            WHERE c.parent_id = g.parent_id AND c.parent_created_at = g.parent_created_at AND c.state IS NULL
              AND c.position <@ g.positions) OR {schema}.failed_of(g) IS NOT NULL AS is_forgotten, g.number
  FROM {schema}.child_groups AS g
 WHERE g.closed_at IS NULL AND (g.parent_id, g.number) > ($1::uuid, $2::integer)
 ORDER BY g.parent_id, g.number LIMIT $3
