-- Written before the action, so that none is made that is not told of. $1 actor, $2 action, $3 target, $4 matched.
-- The last 100,000 are kept.
WITH old AS (
    DELETE FROM {schema}.audit WHERE audit_id <= (SELECT max(audit_id) - 100000 FROM {schema}.audit)
)
INSERT INTO {schema}.audit (actor, action, target, matched) VALUES ($1, $2, $3::jsonb, $4) RETURNING audit_id
