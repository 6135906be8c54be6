-- How kinds are compared, where it is said. $1 kinds (null: all)
SELECT c.kind, c.ignored, c.tolerances, c.ordered, c.changed_at FROM {schema}.comparisons AS c
 WHERE $1::text[] IS NULL OR c.kind = ANY ($1::text[]) ORDER BY c.kind
