-- The triggers that a run passes, and how each stands: O on, A always, R replica only, D off, null: not there.
SELECT w.name, w.relation, t.tgenabled::text AS enabled
  FROM (VALUES ('wake', 'runs'), ('guard', 'runs'), ('take_key', 'runs'), ('keep_key', 'run_history')) AS w (name, relation)
  LEFT JOIN pg_class AS c
    ON c.relname = w.relation AND c.relnamespace = (SELECT n.oid FROM pg_namespace AS n WHERE n.nspname = '{name}')
  LEFT JOIN pg_trigger AS t ON t.tgrelid = c.oid AND t.tgname = w.name
 ORDER BY w.name = 'wake' DESC, w.name
