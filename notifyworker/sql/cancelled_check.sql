-- Cancels live children of a run that was cancelled. `is_done`: none is left. $1 parent_id, $2 limit
SELECT cancelled, is_done FROM {schema}.check_cancelled($1, $2::integer)
