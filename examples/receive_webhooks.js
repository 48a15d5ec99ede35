#!/usr/bin/env node
// Receive and verify Paceline's webhooks: node receive_webhooks.js PORT [LEDGER]   (PACELINE_WEBHOOK_SECRET=whsec_…)
//
// Prints one JSON line an event, or writes it to the file LEDGER. Standard library only.
const { createHmac, timingSafeEqual } = require("node:crypto");
const { appendFileSync } = require("node:fs");
const { createServer } = require("node:http");

const [port, ledger] = process.argv.slice(2);
const secret = Buffer.from(process.env.PACELINE_WEBHOOK_SECRET.replace(/^whsec_/, ""), "base64");
const BODY_BYTES_MAX = 1024 * 1024;

/** Is one of the signatures ours, and the time within five minutes of now? (standardwebhooks.com) */
function verified({ "webhook-id": id, "webhook-timestamp": sent, "webhook-signature": signatures }, body) {
  if (!id || !/^\d{1,15}$/.test(sent) || Math.abs(Date.now() / 1000 - Number(sent)) > 300) return false;
  const digest = createHmac("sha256", secret).update(`${id}.${sent}.`).update(body).digest("base64");
  const expected = Buffer.from(`v1,${digest}`);
  const given = (signatures ?? "").split(" ").map((one) => Buffer.from(one)); // several while a secret is being rotated
  return given.filter((one) => one.length === expected.length && timingSafeEqual(one, expected)).length > 0;
}

async function receive(request, response) {
  const [chunks, id] = [[], request.headers["webhook-id"] ?? null];
  for await (const chunk of request) {
    chunks.push(chunk);
    if (chunks.reduce((bytes, one) => bytes + one.length, 0) > BODY_BYTES_MAX) return response.writeHead(413).end();
  }
  const body = Buffer.concat(chunks);
  const good = request.method === "POST" && verified(request.headers, body);
  const entry = { at: Date.now() / 1000, id, verified: good, event: good ? JSON.parse(body) : null };
  // Keep it first, then say so: the same id may come twice.
  if (ledger) appendFileSync(ledger, `${JSON.stringify(entry)}\n`);
  else console.log(JSON.stringify(entry));
  response.writeHead(good ? 204 : 401).end();
}

createServer((request, response) => receive(request, response).catch(() => response.destroy())).listen(port, "127.0.0.1");
