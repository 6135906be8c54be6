-- What a worker has to know of the rules, to record effects of what they choose.
SELECT m.kind, m.project_id, m.percent, date_part('epoch', m.until - now()) AS ends_in_s
  FROM {schema}.mirrors AS m WHERE m.until IS NULL OR m.until > now()
