// A backend as NestJS builds one with @nestjs/bullmq: ten Queues, ten Workers, five QueueEvents in one process,
// each with the connections that BullMQ opens for it (1, 2 and 1), and not one line that knows of a proxy.
//
// It takes its orders on stdin, so that ordering costs no Redis connection, and reports on stdout:
//   add COUNT [DELAY_MS]   adds jobs, evenly over the queues; then `ADDED COUNT`
//   READY                  every Queue, Worker and QueueEvents is connected
//   FAILED text            the first error of each kind

import { createInterface } from 'node:readline';
import { Queue, QueueEvents, Worker } from 'bullmq';

const QUEUES = ['audit', 'billing', 'cleanup', 'email', 'export', 'image', 'import', 'report', 'search', 'webhook'];
const WITH_EVENTS = QUEUES.filter((_, index) => index % 2 === 0);

const url = process.env.REDIS_URL;
const start = process.env.START ?? '1';
if (!url) {
  console.error('REDIS_URL is not set');
  process.exit(64);
}
const connection = { url };

const seen = new Set();
function failed(error) {
  const text = String(error?.message ?? error).split('\n')[0];
  if (!seen.has(text)) {
    seen.add(text);
    console.log(`FAILED ${text}`);
  }
}

// The side effect of a job: one more for its id in a hash. A job done twice shows there as 2.
async function work(job) {
  const client = await queues.get(job.queueName).getBackend().client;
  await client.hincrby('demo:done', job.id, 1);
}

const queues = new Map(QUEUES.map((name) => [name, new Queue(name, { connection })]));
const workers = QUEUES.map((name) => new Worker(name, work, { connection }));
const events = WITH_EVENTS.map((name) => new QueueEvents(name, { connection }));
const parts = [...queues.values(), ...workers, ...events];
for (const part of parts) part.on('error', failed);

let number = 0;
async function add(count, delay) {
  await Promise.all(
    Array.from({ length: count }, () => {
      const name = QUEUES[number % QUEUES.length];
      number += 1;
      const jobId = `start${start}-job${number}`;
      return queues.get(name).add('work', { number }, { jobId, delay });
    }),
  );
  console.log(`ADDED ${count}`);
}

createInterface({ input: process.stdin })
  .on('line', (line) => {
    const [order, count, delay] = line.split(' ');
    if (order === 'add') add(Number(count), Number(delay ?? 0)).catch(failed);
  })
  // Whoever started us is gone.
  .on('close', () => process.exit(0));

process.on('unhandledRejection', failed);
Promise.all(parts.map((part) => part.waitUntilReady())).then(() => console.log('READY'), failed);
