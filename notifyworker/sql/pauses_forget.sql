-- Pauses that are over.
DELETE FROM {schema}.pauses WHERE until <= now()
