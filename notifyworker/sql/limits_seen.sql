-- How many places are taken and how many runs wait for a key, both counted up to $1, so that it stays cheap; and of the
-- latter the one that is due for the longest, and who holds its key: null if nobody does.
WITH waiting AS MATERIALIZED (
    SELECT r.run_id, r.run_at, r.project_id, r.concurrency_key FROM {schema}.runs AS r WHERE r.waits_for = 'key' LIMIT $1
)
SELECT (SELECT count(*) FROM (SELECT FROM {schema}.places LIMIT $1) AS p) AS places,
       (SELECT count(*) FROM waiting) AS waiting, w.run_id, w.project_id, w.concurrency_key AS key,
       date_part('epoch', now() - w.run_at) AS waits_s, p.run_id AS held_by, p.lease_owner, p.lingers
  FROM (SELECT) AS always
  LEFT JOIN (SELECT * FROM waiting ORDER BY run_at LIMIT 1) AS w ON true
  LEFT JOIN LATERAL (
      SELECT h.run_id, h.lease_owner, h.lingers FROM {schema}.places AS h
       WHERE h.limit_id = 0 AND h.project_id = w.project_id AND h.key = w.concurrency_key
       ORDER BY h.lingers DESC, h.place LIMIT 1) AS p ON true
