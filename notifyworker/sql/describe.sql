-- The objects of a schema as rows: what each is, its name, how it is defined, and the statements that make it where it
-- is missing or mend it where it differs. Partitions are left out: their parent makes them. Reads catalogs alone, so
-- that any login may, and takes no lock on what it describes. What 'fault' names is wrong in itself.
-- $1 the schema's name
WITH home AS (
    SELECT n.oid, quote_ident(n.nspname) AS name, n.nspacl, n.nspowner FROM pg_namespace AS n WHERE n.nspname = $1
), relation AS (
    SELECT c.*, h.name || '.' || quote_ident(c.relname) AS full_name
      FROM pg_class AS c JOIN home AS h ON c.relnamespace = h.oid
     WHERE c.relkind IN ('r', 'p', 'v') AND (NOT c.relispartition OR c.relname = 'run_history_default')
), written AS (  -- columns as they stand in a CREATE TABLE
    SELECT r.relname, r.full_name, a.attname, a.attnotnull, a.attnum, pg_get_expr(d.adbin, d.adrelid) AS stands_in,
           format_type(a.atttypid, a.atttypmod)
           || CASE WHEN a.attcollation <> t.typcollation THEN ' COLLATE ' || quote_ident(l.collname) ELSE '' END AS type
      FROM relation AS r
      JOIN pg_attribute AS a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
      JOIN pg_type AS t ON t.oid = a.atttypid
      LEFT JOIN pg_collation AS l ON l.oid = a.attcollation
      LEFT JOIN pg_attrdef AS d ON d.adrelid = r.oid AND d.adnum = a.attnum
     WHERE r.relkind <> 'v'
), defaults AS (  -- since PostgreSQL 18 the server has the function that we brought along
    SELECT w.*, CASE WHEN w.relname = 'runs' AND w.attname = 'run_id' AND w.stands_in LIKE '%uuid%7()' THEN 'uuid7()'
                     ELSE w.stands_in END AS shown
      FROM written AS w
), granted AS (
    SELECT 'schema' AS what, '' AS name, x.grantee, x.privilege_type
      FROM home AS h, aclexplode(h.nspacl) AS x
    UNION ALL
    SELECT 'table', r.relname::text, x.grantee, x.privilege_type FROM relation AS r, aclexplode(r.relacl) AS x
    UNION ALL
    SELECT 'column', r.relname || '.' || a.attname, x.grantee, x.privilege_type
      FROM relation AS r JOIN pg_attribute AS a ON a.attrelid = r.oid, aclexplode(a.attacl) AS x
    UNION ALL
    SELECT 'function', p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')', x.grantee, x.privilege_type
      FROM pg_proc AS p JOIN home AS h ON p.pronamespace = h.oid,
           aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS x
)
SELECT 'role' AS what, r.rolname::text AS name, '' AS definition,
       format('CREATE ROLE %I NOLOGIN; SELECT %s.grant_roles()', r.rolname, h.name) AS when_missing, NULL AS when_different
  FROM pg_roles AS r, home AS h
 WHERE r.rolname IN ($1 || '_producer', $1 || '_worker', $1 || '_operator', $1 || '_observer')
UNION ALL
SELECT 'table', r.relname, r.relkind::text, NULL, NULL FROM relation AS r WHERE r.relkind <> 'v'
UNION ALL
SELECT 'view', r.relname, coalesce(array_to_string(r.reloptions, ', ') || ' ', '') || pg_get_viewdef(r.oid), v.statement, v.statement
  FROM relation AS r, LATERAL (SELECT format('CREATE OR REPLACE VIEW %s%s AS%s%s', r.full_name,
       ' WITH (' || array_to_string(r.reloptions, ', ') || ')', E'\n', rtrim(pg_get_viewdef(r.oid), ';')) AS statement) AS v
 WHERE r.relkind = 'v'
UNION ALL
SELECT 'column', d.relname || '.' || d.attname, d.type,
       format('ALTER TABLE %s ADD COLUMN %I %s', d.full_name, d.attname, d.type)
       || coalesce(' DEFAULT ' || d.stands_in, '') || CASE WHEN d.attnotnull THEN ' NOT NULL' ELSE '' END,
       format('ALTER TABLE %s ALTER COLUMN %I TYPE %s', d.full_name, d.attname, d.type)
  FROM defaults AS d
UNION ALL
SELECT 'not null', d.relname || '.' || d.attname, '', format('ALTER TABLE %s ALTER COLUMN %I SET NOT NULL', d.full_name, d.attname),
       NULL
  FROM defaults AS d WHERE d.attnotnull
UNION ALL
SELECT 'default', d.relname || '.' || d.attname, d.shown, s.statement, s.statement
  FROM defaults AS d, LATERAL (SELECT format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT ', d.full_name, d.attname)
       || d.stands_in AS statement) AS s
 WHERE d.stands_in IS NOT NULL
UNION ALL
SELECT 'constraint', r.relname || '.' || c.conname, d.definition,
       format('ALTER TABLE %s ADD CONSTRAINT %I %s', r.full_name, c.conname, d.definition),
       format('ALTER TABLE %s DROP CONSTRAINT %I, ADD CONSTRAINT %I %s', r.full_name, c.conname, c.conname, d.definition)
  FROM relation AS r JOIN pg_constraint AS c ON c.conrelid = r.oid,
       LATERAL (SELECT pg_get_constraintdef(c.oid) AS definition) AS d
 WHERE c.contype IN ('c', 'f', 'p', 'u', 'x')
UNION ALL
SELECT CASE WHEN i.indisunique THEN 'unique index' ELSE 'index' END, n.relname, d.definition, d.definition,
       format('DROP INDEX %s.%I; ', h.name, n.relname) || d.definition
  FROM relation AS r JOIN pg_index AS i ON i.indrelid = r.oid JOIN pg_class AS n ON n.oid = i.indexrelid, home AS h,
       LATERAL (SELECT pg_get_indexdef(i.indexrelid) AS definition) AS d
 WHERE NOT EXISTS (SELECT FROM pg_constraint AS c WHERE c.conindid = i.indexrelid AND c.conrelid = r.oid)
UNION ALL
SELECT 'trigger', r.relname || '.' || t.tgname, d.definition, d.definition,
       format('DROP TRIGGER %I ON %s; ', t.tgname, r.full_name) || d.definition
  FROM relation AS r JOIN pg_trigger AS t ON t.tgrelid = r.oid, LATERAL (SELECT pg_get_triggerdef(t.oid) AS definition) AS d
 WHERE NOT t.tgisinternal AND t.tgparentid = 0
UNION ALL
SELECT 'function', p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')',
       CASE p.proname WHEN 'uuid7' THEN '' ELSE pg_get_functiondef(p.oid) END,
       -- A new one is everybody's to execute, until that is revoked.
       format(E'%s;\nREVOKE ALL ON FUNCTION %s.%I(%s) FROM PUBLIC', rtrim(pg_get_functiondef(p.oid), E'\n'), h.name, p.proname,
              pg_get_function_identity_arguments(p.oid)), pg_get_functiondef(p.oid)
  FROM pg_proc AS p JOIN home AS h ON p.pronamespace = h.oid WHERE p.prokind = 'f'
UNION ALL
SELECT 'policy', r.relname || '.' || p.polname,
       concat_ws(' ', p.polcmd::text, p.polpermissive::text, array_to_string(array(
           SELECT coalesce(o.rolname, 'public') FROM unnest(p.polroles) AS u (id) LEFT JOIN pg_roles AS o ON o.oid = u.id), ','),
           pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)), NULL, NULL
  FROM relation AS r JOIN pg_policy AS p ON p.polrelid = r.oid
UNION ALL
SELECT 'row security', r.relname, '', format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', r.full_name), NULL
  FROM relation AS r WHERE r.relrowsecurity
UNION ALL
SELECT 'storage', r.relname, o.options, s.statement, s.statement
  FROM relation AS r, LATERAL (SELECT array_to_string(array(SELECT unnest(r.reloptions) ORDER BY 1), ', ') AS options) AS o,
       LATERAL (SELECT format('ALTER TABLE %s SET (%s)', r.full_name, o.options) AS statement) AS s
 WHERE r.relkind <> 'v' AND r.reloptions IS NOT NULL
UNION ALL
SELECT 'grant', concat_ws(' ', g.privilege_type, 'on', g.what, nullif(g.name, ''), 'to', coalesce(o.rolname, 'public')), coalesce(o.rolname, 'public'),
       format('SELECT %s.grant_roles()', h.name), NULL
  FROM granted AS g LEFT JOIN pg_roles AS o ON o.oid = g.grantee, home AS h
 WHERE g.grantee = 0 OR o.rolname IN ($1 || '_producer', $1 || '_worker', $1 || '_operator', $1 || '_observer')
UNION ALL
SELECT 'fault', n.relname, 'the index ' || n.relname || ' is invalid: nothing is found by it',
       format('REINDEX INDEX CONCURRENTLY %s.%I', h.name, n.relname), NULL
  FROM home AS h JOIN pg_class AS n ON n.relnamespace = h.oid JOIN pg_index AS i ON i.indexrelid = n.oid
 WHERE NOT i.indisvalid
UNION ALL
SELECT 'fault', r.relname, 'the table ' || r.relname || ' has no primary key', NULL, NULL
  FROM relation AS r
 WHERE r.relkind <> 'v' AND NOT EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = r.oid AND i.indisprimary)
 ORDER BY 1, 2
