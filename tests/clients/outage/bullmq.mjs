// BullMQ: Queue, FlowProducer and Worker in one process; every job and flow that was acknowledged must be done. A job that
// was active when its worker lost the server is taken up again when its lock has expired, after 5 s instead of 30.

import { finish, report, url, work } from './common.mjs';

const { FlowProducer, Queue, Worker } = await import(process.argv[2]);
const connection = { host: url.hostname, port: Number(url.port) };
const options = { connection, prefix: process.argv[2] };
const queue = new Queue('outage', options);
const flows = new FlowProducer(options);
const done = new Map();
const worker = new Worker('outage', async (job) => {
  done.set(job.name, (done.get(job.name) ?? 0) + 1);
}, { ...options, concurrency: 2, lockDuration: 5000, stalledInterval: 5000 });
let stalled = 0;
worker.on('stalled', () => (stalled += 1));
for (const part of [queue, flows, worker]) part.on('error', () => {});
await Promise.all([queue, flows, worker].map((part) => part.waitUntilReady()));
console.log('ready');

const add = (number) => number % 4
  ? queue.add(`${number}`, {})
  : flows.add({ name: `${number}`, queueName: 'outage', children: [{ name: `child ${number}`, queueName: 'outage' }] });
const result = await work(add, 30);
report({ ...result, ...await finish(result.acknowledged.map(String), done), stalled, deaf: false });
