// What benchmarks/protocol.py is for Python: `node CONTENDER.mjs VERB`, BENCH_* in the environment, one JSON line at the end.
import { closeSync, openSync, writeSync } from "node:fs";
import { join } from "node:path";

export const env = {
  dsn: process.env.BENCH_DSN,
  directory: process.env.BENCH_DIR,
  count: Number(process.env.BENCH_COUNT ?? 0),
  rate: Number(process.env.BENCH_RATE ?? 0),
  seconds: Number(process.env.BENCH_SECONDS ?? 0),
};
const WARM_UP = 20;
const LOST_MS = 10_000;
const HEAD = 4; // as in benchmarks/tally.py

export const now = () => process.hrtime.bigint(); // CLOCK_MONOTONIC, as Python's time.monotonic_ns
export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Counts in memory, written out every 10 ms: Node has no mmap.
class Tally {
  #file = openSync(join(env.directory, `tally.${process.pid}`), "w");
  #count = 0;
  #first = 0n;
  #latencies = [];
  #written = 0;

  constructor() {
    this.timer = setInterval(() => this.flush(), 10);
  }

  run(stamp = 0) {
    if (this.#count++ === 0) this.#first = now();
    if (stamp) this.#latencies.push(now() - BigInt(stamp));
  }

  flush() {
    const fresh = this.#latencies.slice(this.#written);
    writeSync(this.#file, BigInt64Array.from(fresh), 0, 8 * fresh.length, 8 * (HEAD + this.#written));
    this.#written += fresh.length;
    const head = BigInt64Array.of(BigInt(this.#count), this.#first, BigInt(this.#written), 0n);
    writeSync(this.#file, head, 0, 8 * HEAD, 0);
  }

  close() {
    clearInterval(this.timer);
    this.flush();
    closeSync(this.#file);
  }
}

const untilTold = () => new Promise((resolve) => process.once("SIGTERM", resolve));

async function work(contender) {
  const told = untilTold();
  const tally = new Tally();
  const end = await contender.worker((stamp) => tally.run(stamp));
  await told;
  await end();
  tally.close();
}

async function pickup(contender) {
  let picked;
  const end = await contender.worker((stamp) => picked?.(now() - BigInt(stamp)));
  const producer = await contender.producer();
  await sleep(1000);
  const latencies = [];
  for (let number = 0; number < WARM_UP + env.count; number++) {
    const took = new Promise((resolve, reject) => {
      picked = resolve;
      setTimeout(() => reject(new Error("an insert was not picked up within 10 s")), LOST_MS).unref();
    });
    await producer.insert(Number(now())); // below 2^53 for the first hundred days of a machine
    const ns = await took;
    if (number >= WARM_UP) latencies.push(Number(ns) / 1e6);
    await sleep(10 + 20 * Math.random());
  }
  await producer.end();
  await end();
  return { latencies_ms: latencies };
}

async function produce(contender) {
  const producers = Math.max(1, Math.min(32, Math.floor(env.rate / 50)));
  const begin = performance.now() + 500;
  let sent = 0;
  await Promise.all(
    Array.from({ length: producers }, async (_, place) => {
      const producer = await contender.producer();
      let due = begin + (place / env.rate) * 1000;
      for (let at = performance.now(); at < begin + env.seconds * 1000; at = performance.now()) {
        if (due > at) await sleep(due - at);
        await producer.insert(Number(now()));
        sent++;
        due += (producers / env.rate) * 1000;
      }
      await producer.end();
    }),
  );
  return { inserts_per_s: (sent / (performance.now() - begin)) * 1000, inserts: sent };
}

export async function main(contender) {
  const verbs = { prepare: contender.prepare, fill: contender.fill, work, pickup, produce };
  try {
    console.log(JSON.stringify((await verbs[process.argv[2]](contender)) ?? {}));
    process.exit(0);
  } catch (error) {
    console.error(`${error.stack ?? error}\n${error}`);
    process.exit(1);
  }
}
