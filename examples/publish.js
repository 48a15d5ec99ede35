#!/usr/bin/env node
// Publish jobs to Paceline over RabbitMQ: node publish.js COUNT PROVIDER [CALLBACK_URL] [ID_PREFIX]
// Persistent messages, a hundred at a time on their way to a confirm. AMQP_URL says where. Needs: npm install amqplib
const { connect } = require("amqplib");
const { setTimeout: sleep } = require("node:timers/promises");
const { promisify } = require("node:util");

const [count, provider, callback, prefix = `js-${process.pid}-`] = process.argv.slice(2);
const left = new Set(Array(Number(count)).keys()); // the numbers of the jobs that are not confirmed yet

async function publish(channel, returned, n) {
  const request = { method: "POST", path: "/v1/echo", body: { n } };
  const job = JSON.stringify({ provider, request, callback: callback ? { url: callback } : undefined });
  const options = { messageId: `${prefix}${n}`, contentType: "application/json", persistent: true, mandatory: true };
  await promisify(channel.publish).call(channel, "paceline.jobs", provider, Buffer.from(job), options); // until its confirm
  if (returned.has(options.messageId)) throw new Error("no queue takes it");
  left.delete(n);
}

(async () => {
  while (left.size > 0) { // the same messageId is the same job: publishing it again after a doubt is safe
    let connection;
    try {
      connection = await connect(process.env.AMQP_URL ?? "amqp://guest:guest@127.0.0.1:5672/%2f", { timeout: 10_000 });
      const [channel, returned] = [await connection.on("error", () => {}).createConfirmChannel(), new Set()];
      channel.on("error", () => {}).on("return", (message) => returned.add(message.properties.messageId));
      while (left.size > 0) { // what a lost connection or channel leaves unconfirmed is rejected
        const batch = Promise.allSettled([...left].slice(0, 100).map((n) => publish(channel, returned, n)));
        const late = sleep(10_000, [{ reason: "no confirm within 10 s" }], { ref: false });
        for (const { reason } of await Promise.race([batch, late])) if (reason) throw reason;
      }
    } catch (error) {
      console.error(`not confirmed, again in a second: ${error}`);
      await sleep(1000);
    }
    connection?.close().catch(() => {});
  }
  console.log(`${count} jobs published and confirmed, ${prefix}0 to ${prefix}${count - 1}`);
})();
