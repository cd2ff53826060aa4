// BullMQ: Queue, FlowProducer and Worker in one process; every job and flow that was acknowledged must be done.

import { FlowProducer, Queue, Worker } from 'bullmq';
import { report, sleep, url, work } from './common.mjs';

const connection = { host: url.hostname, port: Number(url.port) };
const queue = new Queue('outage', { connection });
const flows = new FlowProducer({ connection });
const done = new Map();
const worker = new Worker('outage', async (job) => {
  done.set(job.name, (done.get(job.name) ?? 0) + 1);
}, { connection, concurrency: 4 });
for (const part of [queue, flows, worker]) part.on('error', () => {});
await Promise.all([queue, flows, worker].map((part) => part.waitUntilReady()));
console.log('ready');

const add = (number) => number % 4
  ? queue.add(`${number}`, {})
  : flows.add({ name: `${number}`, queueName: 'outage', children: [{ name: `child ${number}`, queueName: 'outage' }] });
const result = await work(add, 30);
const missing = () => result.acknowledged.filter((number) => !done.has(`${number}`)).length;
for (let tries = 0; missing() && tries < 100; tries += 1) await sleep(100);
const doubled = [...done.values()].filter((times) => times > 1).length;
report({ ...result, doubled, lost: missing(), deaf: false });
