"""pg-boss: pg_boss.mjs is what runs."""

from benchmarks.contender import Contender

CONTENDERS = [
    Contender(
        name="pg-boss",
        title="pg-boss",
        module="pg_boss",
        runtime="node",
        package="pg-boss",
        unsettled="SELECT EXISTS (SELECT FROM pgboss.job WHERE name = 'bench' AND state < 'completed')",
        settings="batchSize 500, burstWhenBatchFull, LISTEN/NOTIFY on",
        durability="commit on disk before send returns; a dead worker's jobs expire after 15 minutes; finished jobs are kept for 7 days",
        takes=("drain", "pickup", "load"),
        rates=(100, 1000),
    )
]
