-- Transactions that hold M shared: those that have inserted, stayed silent, and are still open.
SELECT now() AS seen_at, array(
    SELECT l.virtualtransaction
      FROM pg_locks AS l
     WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted AND l.mode = 'ShareLock'
       AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND l.classid = {lock_class}::oid AND l.objid = ({silent_lock}::bigint & 4294967295)::oid
) AS ids
