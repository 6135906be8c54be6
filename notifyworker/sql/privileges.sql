-- What this login may do here.
SELECT pg_has_role(c.relowner, 'USAGE') AS is_owner, pg_get_userbyid(c.relowner)::text AS owner,
       has_table_privilege(c.oid, 'INSERT') AS may_insert,
       has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE') AS may_work,
       has_table_privilege(c.oid, 'SELECT') AS may_read,
       c.relrowsecurity AS is_separated, row_security_active(c.oid) AS is_filtered,
       array(SELECT r.rolname::text FROM pg_roles AS r
              WHERE r.rolname IN ('{name}_producer', '{name}_worker', '{name}_operator', '{name}_observer')
                AND pg_has_role(r.oid, 'USAGE') ORDER BY 1) AS roles,
       array(SELECT w.name FROM unnest(ARRAY['{name}_producer', '{name}_worker', '{name}_operator', '{name}_observer']) AS w (name)
              WHERE NOT EXISTS (SELECT FROM pg_roles AS r WHERE r.rolname = w.name)) AS missing_roles
  FROM pg_class AS c
 WHERE c.relname = 'runs' AND c.relnamespace = (SELECT n.oid FROM pg_namespace AS n WHERE n.nspname = '{name}')
