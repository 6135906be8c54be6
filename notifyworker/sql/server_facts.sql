-- What the server is, who is logged in to it, and settings of it that matter here.
SELECT current_setting('server_version') AS version, current_setting('server_version_num')::integer AS version_num,
       current_user::text AS login, pg_is_in_recovery() AS is_standby,
       host(inet_client_addr()) AS client, s.version AS tls, coalesce(s.ssl, false) AS is_encrypted,
       current_setting('autovacuum')::boolean AS autovacuum, current_setting('track_counts')::boolean AS track_counts,
       current_setting('max_notify_queue_pages', true)::bigint AS max_notify_queue_pages,  -- from PostgreSQL 17 on
       current_setting('synchronous_standby_names') AS synchronous_standby_names,
       current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint
           - coalesce(current_setting('reserved_connections', true)::bigint, 0) AS connections,
       (SELECT sum(d.numbackends)::bigint FROM pg_stat_database AS d) AS connections_used,
       (SELECT nullif(d.datconnlimit, -1)::bigint FROM pg_database AS d WHERE d.datname = current_database()) AS connections_database,
       (SELECT d.numbackends::bigint FROM pg_stat_database AS d WHERE d.datname = current_database()) AS connections_database_used,
       (SELECT nullif(r.rolconnlimit, -1)::bigint FROM pg_roles AS r WHERE r.rolname = current_user) AS connections_login,
       (SELECT count(*) FROM pg_stat_activity AS a WHERE a.usename = current_user) AS connections_login_used,
       (SELECT r.rolsuper FROM pg_roles AS r WHERE r.rolname = current_user) AS is_superuser
  FROM (SELECT) AS one LEFT JOIN pg_stat_ssl AS s ON s.pid = pg_backend_pid()
