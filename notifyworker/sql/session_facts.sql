-- What a connection gets that sets nothing itself: those that run.transaction() hands to handlers. Times in ms.
SELECT s.name, s.setting FROM pg_settings AS s
 WHERE s.name IN ('statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout',
                  'default_transaction_read_only', 'session_replication_role')
