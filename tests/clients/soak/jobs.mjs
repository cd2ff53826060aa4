// Adds BullMQ jobs, one in four with a child of its own, and says which were acknowledged. Never killed: it is the memory of
// what must be done.

import { FlowProducer, Queue, QueueEvents } from 'bullmq';
import { address, failed, ready, repeat, totals } from './common.mjs';

const options = { connection: address };
const kept = { removeOnComplete: { count: 100 }, removeOnFail: false };
const queue = new Queue('soak', { ...options, defaultJobOptions: kept });
const flows = new FlowProducer(options);
const events = new QueueEvents('soak', options);
totals.heard = 0;
events.on('completed', () => (totals.heard += 1));
for (const part of [queue, flows, events]) part.on('error', failed);
await Promise.all([queue, flows, events].map((part) => part.waitUntilReady()));
const tell = ready();

await repeat(20, async (number) => {
  const name = `${number}`;
  const child = { name: `child ${name}`, queueName: 'soak', opts: kept };
  if (number % 4) await queue.add(name, {});
  else await flows.add({ name, queueName: 'soak', children: [child], opts: kept });
  totals.ok += 1;
  console.log(JSON.stringify({ acknowledged: name }));
});
tell();
process.exit(0);
