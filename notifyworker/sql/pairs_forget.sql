-- Pairs that are older than the retention. $1 limit
DELETE FROM {schema}.shadow_pairs AS d
 WHERE d.ctid = ANY (array(
     SELECT p.ctid FROM {schema}.shadow_pairs AS p
      WHERE p.chosen_at < (SELECT now() - (value #>> '{}')::numeric::integer * interval '1 day'
                             FROM {schema}.settings WHERE name = 'history_retention_days')
      LIMIT $1 FOR UPDATE SKIP LOCKED))
RETURNING d.live_run_id
