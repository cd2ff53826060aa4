// Bull 4: a queue that adds and processes jobs; every job that was acknowledged must be done. A job that was active when
// its worker lost the server is looked for every 5 s, as in bullmq.mjs.

import Queue from 'bull';
import { finish, report, url, work } from './common.mjs';

const queue = new Queue('outage', {
  prefix: 'bull4',
  redis: { host: url.hostname, port: Number(url.port) },
  settings: { lockDuration: 5000, stalledInterval: 5000 },
});
let stalled = 0;
queue.on('stalled', () => (stalled += 1));
queue.on('error', () => {});
const done = new Map();
queue.process(2, async (job) => {
  done.set(job.data.number, (done.get(job.data.number) ?? 0) + 1);
});
await queue.isReady();
console.log('ready');

const result = await work((number) => queue.add({ number }), 30);
report({ ...result, ...await finish(result.acknowledged, done), stalled, deaf: false });
