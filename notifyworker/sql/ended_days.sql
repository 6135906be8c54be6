-- Days of which something may be over; those that can be dropped as a whole first.
SELECT e.day, e.is_over AND NOT e.is_kept AS is_droppable FROM {schema}.ended_days() AS e ORDER BY e.day
