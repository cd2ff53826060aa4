// A BullMQ backend with 100 Workers and 20 QueueEvents (220 connections), directly and through redbouncer in turn, on
// the same Redis: jobs a second, and what one job costs the server.
//
//   node bench/workers.mjs --proxy PATH_OF_REDBOUNCER [--slices 4] [--seconds 6] [--workers 100] [--events 20]
//
// Each side has its own queues on the same server; only one is given jobs at a time. Exits 1 when a job is lost, when
// the proxy holds more than 8 connections, or (with the full numbers) when it does less than 0.9 of the direct rate or
// costs the server more CPU a job.

import { spawn } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { Queue, QueueEvents, Worker } from 'bullmq';
import { Redis } from 'ioredis';
import { freePort } from '../servers.mjs';

const { values } = parseArgs({
  options: {
    proxy: { type: 'string' },
    slices: { type: 'string', default: '4' },
    seconds: { type: 'string', default: '6' },
    workers: { type: 'string', default: '100' },
    events: { type: 'string', default: '20' },
  },
});
const [slices, seconds, workers, events] = ['slices', 'seconds', 'workers', 'events'].map((key) => Number(values[key]));
const CAP = 8;
const BACKLOG = 200; // jobs that wait at any time: enough to keep every worker busy, few enough to wake them often

const children = [];
process.on('exit', () => children.forEach((child) => child.kill('SIGKILL')));

function run(program, args) {
  const child = spawn(program, args, { stdio: 'ignore' });
  children.push(child);
  return child;
}

async function open(port) {
  for (let attempt = 0; ; attempt += 1) {
    const redis = new Redis(port, '127.0.0.1', { protocol: 2, lazyConnect: true, retryStrategy: null });
    redis.on('error', () => {});
    try {
      await redis.connect();
      return redis;
    } catch (error) {
      if (attempt > 100) throw error;
      await sleep(50);
    }
  }
}

// All Workers and QueueEvents of one side, waiting.
async function backend(name, port) {
  const connection = { host: '127.0.0.1', port };
  const names = Array.from({ length: events }, (_, index) => `${name}-${index}`);
  const side = { name, done: 0, heard: 0, added: 0, slices: [] };
  const count = (job) => {
    side.done += 1;
    return job.data.number;
  };
  side.queues = names.map((queue) => new Queue(queue, { connection }));
  side.events = names.map((queue) => new QueueEvents(queue, { connection }));
  side.workers = Array.from({ length: workers }, (_, i) => new Worker(names[i % names.length], count, { connection }));
  for (const part of [...side.queues, ...side.events, ...side.workers]) part.on('error', (error) => console.error(`${name}: ${error.message}`));
  for (const queue of side.events) queue.on('completed', () => (side.heard += 1));
  await Promise.all([...side.queues, ...side.events, ...side.workers].map((part) => part.waitUntilReady()));
  return side;
}

async function cpu(redis) {
  const info = await redis.info('cpu');
  const field = (name) => Number(new RegExp(`${name}:([\\d.]+)`).exec(info)[1]);
  return field('used_cpu_user') + field('used_cpu_sys');
}

// Keeps the queues filled for a while, then lets them run empty.
async function slice(side, redis) {
  const before = { done: side.done, cpu: await cpu(redis), at: performance.now() };
  const end = before.at + seconds * 1000;
  let turn = 0;
  while (performance.now() < end) {
    if (side.added - side.done >= BACKLOG) {
      await sleep(1);
      continue;
    }
    const queue = side.queues[turn++ % side.queues.length];
    const options = { removeOnComplete: true };
    const jobs = Array.from({ length: 10 }, () => ({ name: 'job', data: { number: (side.added += 1) }, opts: options }));
    await queue.addBulk(jobs);
  }
  const patience = performance.now() + 20_000;
  while (side.done < side.added && performance.now() < patience) await sleep(5);
  const took = (performance.now() - before.at) / 1000;
  const jobs = side.done - before.done;
  side.slices.push({ rate: jobs / took, cpu: ((await cpu(redis)) - before.cpu) / jobs });
}

const median = (numbers) => numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)];

const [serverPort, proxyPort, adminPort] = [await freePort(), await freePort(), await freePort()];
run('redis-server', ['--port', String(serverPort), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no']);
const redis = await open(serverPort);
run(values.proxy, [
  ...['--listen', `127.0.0.1:${proxyPort}`, '--upstream', `redis://127.0.0.1:${serverPort}`],
  ...['--admin', `127.0.0.1:${adminPort}`, '--max-connections', String(CAP)],
]);
(await open(proxyPort)).disconnect();

const direct = await backend('direct', serverPort);
const clients = async () => (await redis.client('LIST')).trim().split('\n');
const connections = (await clients()).length - 1;
const proxied = await backend('proxied', proxyPort);
await sleep(500);
const ours = (await clients()).filter((row) => / name=redbouncer:/.test(row)).length;
console.log(`${workers} Workers, ${events} QueueEvents, ${events} Queues: directly ${connections} connections, through redbouncer ${ours}`);

for (let round = 0; round < slices; round += 1) {
  for (const side of [direct, proxied]) await slice(side, redis);
}
await sleep(500);

let failed = ours > CAP;
for (const side of [direct, proxied]) {
  side.rate = median(side.slices.map(({ rate }) => rate));
  side.cpu = median(side.slices.map((one) => one.cpu));
  const line = `${side.done} of ${side.added} jobs done, ${side.heard} heard of; ${side.rate.toFixed(0)} jobs/s, ${(side.cpu * 1e6).toFixed(0)} µs of the server's CPU a job`;
  console.log(`${side.name.padStart(8)}: ${line}`);
  failed ||= side.done !== side.added || side.heard !== side.done;
}
const [rate, cost] = [proxied.rate / direct.rate, proxied.cpu / direct.cpu];
console.log(`   ratio: ${rate.toFixed(2)} of the jobs a second, ${cost.toFixed(2)} of the server's CPU a job`);
if (workers >= 100) failed ||= rate < 0.9 || cost >= 1;
process.exit(failed ? 1 : 0);
