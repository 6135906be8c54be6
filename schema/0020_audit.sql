-- Who changed what by hand, over the page or HTTP: a row is written before the action, and completed after it. A row without
-- `changed` is an action of which nobody knows whether it was made.

CREATE TABLE {schema}.audit (
    audit_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at       timestamptz NOT NULL DEFAULT now(),
    actor    text        NOT NULL,  -- the name of the token; 'local' where the sidecar has none
    action   text        NOT NULL,
    target   jsonb       NOT NULL,  -- the filter, or what else it was made on
    matched  bigint      NOT NULL,
    changed  bigint,
    outcome  text,
    CONSTRAINT actor_has_1_to_200_characters CHECK (char_length(actor) BETWEEN 1 AND 200),
    CONSTRAINT action_has_1_to_200_characters CHECK (char_length(action) BETWEEN 1 AND 200)
);
