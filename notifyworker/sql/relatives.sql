-- For readers: who has started a run, how many children of its own there are, and what it waits for.
-- $1 run_id, $2 its created_at
SELECT (SELECT c.parent_id FROM {schema}.children AS c WHERE c.child_id = $1) AS parent_id,
       coalesce(n.live, 0) AS live, coalesce(n.completed, 0) AS completed, coalesce(n.failed, 0) AS failed,
       coalesce(n.cancelled, 0) AS cancelled, coalesce(n.deleted, 0) AS deleted,
       w.name AS event_name, w.key AS event_key, w.ends_at AS event_until
  FROM (SELECT count(*) FILTER (WHERE c.state IS NULL) AS live, count(*) FILTER (WHERE c.state = 'completed') AS completed,
               count(*) FILTER (WHERE c.state = 'failed') AS failed, count(*) FILTER (WHERE c.state = 'cancelled') AS cancelled,
               count(*) FILTER (WHERE c.state = 'deleted') AS deleted
          FROM {schema}.children AS c WHERE c.parent_id = $1 AND c.parent_created_at = $2) AS n
  LEFT JOIN ({schema}.event_waits AS w JOIN {schema}.runs AS r
      ON r.run_id = w.run_id AND r.created_at = w.run_created_at AND r.state = 'pending' AND r.lease_token = w.lease_token)
    ON w.run_id = $1
