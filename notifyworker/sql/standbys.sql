-- Standbys that commits may wait for. Of others' sessions a plain login sees no state.
SELECT r.application_name AS name, r.sync_state, r.state FROM pg_stat_replication AS r ORDER BY 1
