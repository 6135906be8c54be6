import { PgBoss } from "pg-boss";
import { env, main } from "./protocol.mjs";

const QUEUE = "bench";
const options = { connectionString: env.dsn, useListenNotify: true };

async function started(more = {}) {
  const boss = new PgBoss({ ...options, ...more });
  boss.on("error", (error) => console.error(String(error)));
  await boss.start();
  return boss;
}

await main({
  async prepare() {
    const boss = await started();
    await boss.createQueue(QUEUE, { notify: true });
    await boss.stop({ graceful: false });
  },

  async fill() {
    const boss = await started({ useListenNotify: false });
    for (let left = env.count; left > 0; left -= 5000) {
      await boss.insert(QUEUE, Array.from({ length: Math.min(left, 5000) }, () => ({ data: { t: 0 } })));
    }
    await boss.stop({ graceful: false });
  },

  async worker(onRun) {
    const boss = await started();
    await boss.work(QUEUE, { batchSize: 500, burstWhenBatchFull: true, pollingIntervalSeconds: 0.5 }, async (jobs) => {
      for (const job of jobs) onRun(job.data.t);
    });
    return () => boss.stop({ graceful: true, timeout: 5000 });
  },

  async producer() {
    const boss = await started({ useListenNotify: false, supervise: false, schedule: false, max: 1 });
    return { insert: (t) => boss.send(QUEUE, { t }), end: () => boss.stop({ graceful: false }) };
  },
});
