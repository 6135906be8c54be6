-- $1 kind, $2 version, $3 project_id, $4 finished_after, $5 finished_before, $6 behind which run, $7 how many
SELECT * FROM {schema}.replay_in_shadow($1, $2, $3, $4, $5, $6, $7)
