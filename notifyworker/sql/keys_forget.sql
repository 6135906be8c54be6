-- Keys whose time is over. $1 limit
DELETE FROM {schema}.idempotency_keys AS k
 WHERE k.ctid = ANY (array(
     SELECT e.ctid FROM {schema}.idempotency_keys AS e
      WHERE e.expires_at <= now() ORDER BY e.expires_at LIMIT $1 FOR UPDATE SKIP LOCKED))
   AND CASE WHEN k.expires_at <= now() THEN true END
RETURNING k.run_id
