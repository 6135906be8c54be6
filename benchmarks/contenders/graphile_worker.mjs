import { Logger, makeWorkerUtils, run } from "graphile-worker";
import pg from "pg";
import { env, main } from "./protocol.mjs";

const quiet = new Logger(() => () => {}); // its own performance test is as quiet
const preset = {
  worker: {
    connectionString: env.dsn,
    concurrentJobs: 24,
    maxPoolSize: 25,
    localQueue: { size: 500 },
    completeJobBatchDelay: 0,
    failJobBatchDelay: 0,
    logger: quiet,
  },
};

await main({
  async prepare() {
    const utils = await makeWorkerUtils({ connectionString: env.dsn, logger: quiet });
    await utils.migrate();
    await utils.release();
  },

  async fill() {
    const client = new pg.Client(env.dsn);
    await client.connect();
    await client.query(
      `SELECT graphile_worker.add_jobs(array_agg(
         json_populate_record(null::graphile_worker.job_spec, '{"identifier": "bench", "payload": {"t": 0}}')))
         FROM generate_series(1, $1)`,
      [env.count],
    );
    await client.end();
  },

  async worker(onRun) {
    const runner = await run({ preset, noHandleSignals: true, taskList: { bench: ({ t }) => onRun(t) } });
    return () => runner.stop();
  },

  async producer() {
    const client = new pg.Client(env.dsn);
    await client.connect();
    return {
      insert: (t) => client.query({ name: "add", text: "SELECT graphile_worker.add_job('bench', $1::json)", values: [{ t }] }),
      end: () => client.end(),
    };
  },
});
