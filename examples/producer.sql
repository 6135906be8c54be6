-- A producer in psql: psql "$DSN" --quiet --no-align --tuples-only -v to=a@example.org -f producer.sql
BEGIN;
SELECT notifyworker.enqueue('email.send', jsonb_build_object('to', :'to'), idempotency_key => 'welcome ' || :'to');
COMMIT;
