-- Writes what was logged under leases of this worker, in place of what it wrote before; and deletes of each run what earlier
-- leases logged once the later ones have as many lines as are kept. Returns nothing for a run that is another's.
-- $1 lease_owner, then an element a lease: $2 run_id, $3 lease_token, $4 lines, as a JSON array, $5 how many they are, $6 how
-- many before them are not kept, $7 whether no more will come; $8 how many lines of a run are kept
WITH mine AS MATERIALIZED (
    SELECT r.*, n.lines, n.line_count, n.cut, n.is_whole
      FROM unnest($2::uuid[], $3::bigint[], $4::text[], $5::integer[], $6::integer[], $7::boolean[])
           AS n (run_id, lease_token, lines, line_count, cut, is_whole), LATERAL (
          SELECT r.run_id, r.created_at, r.lease_token, r.attempt, r.project_id
            FROM {schema}.runs AS r
           WHERE r.run_id = n.run_id AND r.lease_token = n.lease_token AND r.lease_owner = $1 AND r.state = 'running'
          OFFSET 0) AS r
), old AS (
    DELETE FROM {schema}.run_logs AS l USING mine
     WHERE l.run_id = mine.run_id AND l.run_created_at = mine.created_at AND l.lease_token < mine.lease_token
       AND mine.line_count + (SELECT coalesce(sum(k.line_count), 0) FROM {schema}.run_logs AS k
                               WHERE k.run_id = l.run_id AND k.run_created_at = l.run_created_at
                                 AND k.lease_token > l.lease_token AND k.lease_token < mine.lease_token) >= $8::integer
)
INSERT INTO {schema}.run_logs AS l (run_id, run_created_at, lease_token, line_count, cut, attempt, is_whole, project_id, lines)
SELECT run_id, created_at, lease_token, line_count, cut, attempt, is_whole, project_id, lines::json FROM mine
    ON CONFLICT ON CONSTRAINT run_logs_pkey DO UPDATE
   SET written_at = excluded.written_at, line_count = excluded.line_count, cut = excluded.cut, is_whole = excluded.is_whole,
       lines = excluded.lines
 -- A write that comes late, after a later one, changes nothing.
 WHERE (l.is_whole, l.cut + l.line_count) <= (excluded.is_whole, excluded.cut + excluded.line_count)
RETURNING l.run_id
