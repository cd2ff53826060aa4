// A BullMQ Worker that says what it has done, job by job, before BullMQ marks the job as completed: it may be killed at any
// moment. A job that was active then is taken up again when its lock has expired, after 5 s instead of 30.

import { Worker } from 'bullmq';
import { address, failed, life, ready, sleep, totals } from './common.mjs';

const worker = new Worker('soak', async (job) => {
  totals.ok += 1;
  console.log(JSON.stringify({ done: job.name }));
}, {
  connection: address, concurrency: 2, lockDuration: 5000, stalledInterval: 2000, maxStalledCount: 1000,
});
worker.on('error', failed);
await worker.waitUntilReady();
const tell = ready();
while (!life.stopped) await sleep(50);
tell();
process.exit(0);
