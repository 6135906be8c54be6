-- Waiters that live no more. $1 limit
DELETE FROM {schema}.waiters AS w
 WHERE w.ctid = ANY (array(
     SELECT e.ctid FROM {schema}.waiters AS e WHERE e.expires_at <= now() ORDER BY e.expires_at LIMIT $1 FOR UPDATE SKIP LOCKED))
   AND CASE WHEN w.expires_at <= now() THEN true END
RETURNING w.run_id
