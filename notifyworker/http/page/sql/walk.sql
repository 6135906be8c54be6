-- Until the end of the transaction, lists are read along an index in their order: where few rows fit, or none, the planner
-- would read all of history and sort them.
SELECT set_config(name, 'off', true) FROM unnest(ARRAY['enable_sort', 'enable_seqscan', 'enable_bitmapscan']) AS name
