-- What is live of a kind. $1 kind, $2 project_id (empty: of every project that has no row of its own)
SELECT {schema}.live_version($1, $2) AS version
