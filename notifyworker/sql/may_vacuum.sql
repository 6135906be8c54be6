-- MAINTAIN exists from PostgreSQL 17 on; asked for by name before that, it is an error, so it is not asked for.
SELECT CASE WHEN pg_has_role(c.relowner, 'USAGE') THEN true
            WHEN current_setting('server_version_num')::int >= 170000
                THEN has_table_privilege(c.oid, CASE WHEN current_setting('server_version_num')::int >= 170000
                                                     THEN 'MAINTAIN' ELSE 'SELECT' END)
            ELSE false END AS may
  FROM pg_class AS c WHERE c.oid = '{schema}.runs'::regclass
