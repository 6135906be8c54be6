"""graphile-worker: graphile_worker.mjs is what runs."""

from benchmarks.contender import Contender

CONTENDERS = [
    Contender(
        name="graphile-worker",
        title="graphile-worker",
        module="graphile_worker",
        runtime="node",
        package="graphile-worker",
        unsettled="SELECT EXISTS (SELECT FROM graphile_worker._private_jobs)",
        settings="localQueue 500, 24 concurrent, pool 25, completion batched with no delay",
        durability="commit on disk before add_job returns; a dead worker's jobs stay locked for 4 hours; finished jobs are deleted",
        takes=("drain", "pickup", "load"),
        rates=(100, 1000),
    )
]
