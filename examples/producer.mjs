// A producer in Node: npm install pg; node producer.mjs postgresql://user:password@host/database a@example.org
import pg from "pg";

const [dsn, to] = process.argv.slice(2);
const client = new pg.Client({ connectionString: dsn });
await client.connect();
try {
  // The run is part of your own transaction: committed with it, or not at all.
  await client.query("BEGIN");
  const { rows } = await client.query(
    "INSERT INTO notifyworker.runs (kind, payload) VALUES ($1, $2) RETURNING run_id",
    ["email.send", { to }],
  );
  await client.query("COMMIT");
  console.log(rows[0].run_id);
} finally {
  await client.end();
}
