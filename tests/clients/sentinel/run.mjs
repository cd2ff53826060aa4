// BullMQ and Celery behind three Sentinels, through a failover: clients of redbouncer with plain redis://, and beside them the same
// BullMQ program with its own Sentinel client.
//
//   node sentinel/run.mjs --proxy PATH_OF_REDBOUNCER [--workers N] [--events N]
//
// The master is killed. Every job that was acknowledged, and that the new master has, is done; it is done twice only if BullMQ
// has found it stalled. The first job through redbouncer is done no later than directly. In the CLIENT LIST of each server there
// are at most as many connections of redbouncer as it may open. Celery needs no `master_name`, and gets its results again.

import { spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Queue, QueueEvents, Worker } from 'bullmq';
import { Redis } from 'ioredis';
import { freePort, until } from '../servers.mjs';

const text = { type: 'string' };
const { values: flags } = parseArgs({
  options: { proxy: text, workers: { ...text, default: '10' }, events: { ...text, default: '2' } },
});
if (!flags.proxy) {
  console.error('usage: node sentinel/run.mjs --proxy PATH_OF_REDBOUNCER [--workers N] [--events N]');
  process.exit(64);
}

const CAP = 8;
const SERVICE = 'main';
const DOWN_AFTER_MS = 2000;
const DEADLINE_MS = 90_000;
// By so much the first job through redbouncer may be later, on a machine that is busy.
const NOISE_MS = 1500;
const here = dirname(fileURLToPath(import.meta.url));
const directory = mkdtempSync(join(tmpdir(), 'redbouncer-sentinel-'));
const children = new Set();
const problems = [];

function start(program, args, options = {}) {
  const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'pipe'], ...options });
  children.add(child);
  child.out = '';
  child.stdout.on('data', (data) => { child.out += data; });
  child.stderr.on('data', (data) => { child.out += data; });
  child.ended = new Promise((resolve) => { child.on('exit', (code) => { children.delete(child); resolve(code); }); });
  return child;
}

process.on('exit', () => {
  for (const child of children) child.kill('SIGKILL');
  rmSync(directory, { recursive: true, force: true });
});

const eventually = (what, condition) => until(what, condition, DEADLINE_MS);

// A connection that waits for its server to come, or to come back.
function watcher(port) {
  const client = new Redis(port, '127.0.0.1', { retryStrategy: () => 50, maxRetriesPerRequest: null });
  client.on('error', () => {});
  return client;
}

function redis(name, port, lines) {
  const folder = join(directory, name);
  mkdirSync(folder);
  const file = join(folder, 'redis.conf');
  writeFileSync(file, [`port ${port}`, 'bind 127.0.0.1', 'save ""', `dir ${folder}`, ...lines, ''].join('\n'));
  return start('redis-server', [file, ...(name.startsWith('sentinel') ? ['--sentinel'] : [])]);
}

const ports = [];
for (let at = 0; at < 6; at += 1) ports.push(await freePort());
const [master, ...replicas] = ports.slice(0, 3);
const common = ['repl-diskless-sync-delay 0', 'repl-ping-replica-period 1'];
const servers = [redis('server-0', master, common)];
replicas.forEach((port, at) => servers.push(redis(`server-${at + 1}`, port, [...common, `replicaof 127.0.0.1 ${master}`])));
const watchers = ports.slice(0, 3).map(watcher);
await eventually('replicas are in step', async () => {
  const infos = await Promise.all(watchers.slice(1).map((client) => client.info('replication')));
  return infos.every((info) => info.includes('master_link_status:up'));
});
const sentinelPorts = ports.slice(3);
sentinelPorts.forEach((port, at) => redis(`sentinel-${at}`, port, [
  `sentinel monitor ${SERVICE} 127.0.0.1 ${master} 2`,
  `sentinel down-after-milliseconds ${SERVICE} ${DOWN_AFTER_MS}`,
  `sentinel failover-timeout ${SERVICE} 20000`,
]));
const sentinels = sentinelPorts.map(watcher);
const field = (list, name) => list[list.indexOf(name) + 1];
await eventually('the Sentinels know each other and both replicas', async () => {
  const all = await Promise.all(sentinels.map((client) => client.call('SENTINEL', 'MASTER', SERVICE)));
  return all.every((list) => field(list, 'num-slaves') === '2' && field(list, 'num-other-sentinels') === '2');
});

const port = await freePort();
const hosts = sentinelPorts.map((each) => `127.0.0.1:${each}`).join(',');
const proxy = start(flags.proxy, ['run', '--upstream', `redis-sentinel://${hosts}/${SERVICE}`, '--listen', `127.0.0.1:${port}`,
  '--admin', '127.0.0.1:0', '--set', `pool.max_connections=${CAP}`, '--set', 'upstream.failover_wait=30s']);
await eventually('redbouncer is ready', () => {
  if (proxy.exitCode !== null) throw new Error(`redbouncer has ended: ${proxy.out}`);
  return proxy.out.includes('upstream reached');
});

let isOver = false;
let peak = 0;
const sampling = Promise.all(watchers.map(async (client) => {
  while (!isOver) {
    const list = await Promise.race([client.client('LIST'), sleep(1000, '')]);
    peak = Math.max(peak, list.split('\n').filter((row) => row.includes(' name=redbouncer:')).length);
    await sleep(50);
  }
}));

// One BullMQ program: jobs are added one after the other and done by many workers.
function program(name, connection) {
  const options = { connection, prefix: name };
  const [done, completed, acknowledged, times] = [new Map(), new Set(), [], []];
  const count = (job) => done.set(job, (done.get(job) ?? 0) + 1);
  const queue = new Queue('jobs', options);
  const work = async (job) => {
    times.push(Date.now());
    count(job.data.number);
  };
  const workers = Array.from({ length: Number(flags.workers) }, () => new Worker('jobs', work, { ...options, drainDelay: 2 }));
  const events = Array.from({ length: Number(flags.events) }, () => new QueueEvents('jobs', options));
  let stalled = 0;
  for (const each of workers) each.on('stalled', () => { stalled += 1; });
  events.forEach((each) => each.on('completed', ({ jobId }) => completed.add(jobId)));
  for (const each of [queue, ...workers, ...events]) each.on('error', () => {});
  let adding = true;
  let number = 0;
  const producer = (async () => {
    for (; adding; number += 1) {
      await queue.add('job', { number }, { jobId: `job-${number}` }).then(() => acknowledged.push(number), () => {});
      await sleep(10);
    }
  })();
  return {
    name, done, acknowledged, times,
    ready: () => Promise.all([queue, ...workers, ...events].map((each) => each.waitUntilReady())),
    async finish(now) {
      adding = false;
      await producer;
      // What the former master has acknowledged and not sent to its replicas is lost by Redis, with or without a proxy.
      const kept = await Promise.all(acknowledged.map((job) => now.exists(`${name}:jobs:job-${job}`)));
      const expected = acknowledged.filter((_, at) => kept[at] === 1);
      await eventually(`${name}: every job is done`, () => expected.every((job) => done.has(job)));
      const twice = [...done.values()].filter((times) => times > 1).length;
      if (twice > stalled) problems.push(`${name}: ${twice} jobs done more than once, ${stalled} of them stalled`);
      if (completed.size === 0) problems.push(`${name}: QueueEvents have heard nothing`);
      return { jobs: expected.length, lost: acknowledged.length - expected.length, twice, stalled };
    },
    close: () => Promise.race([Promise.all([queue, ...workers, ...events].map((each) => each.close(true).catch(() => {}))), sleep(5000)]),
  };
}

const sides = [
  program('redbouncer', { host: '127.0.0.1', port }),
  program('directly', { sentinels: sentinelPorts.map((each) => ({ host: '127.0.0.1', port: each })), name: SERVICE }),
];
await Promise.all(sides.map((side) => side.ready()));

// Celery with plain redis://. Its program prints a line for each result.
const python = join(here, '..', '.venv', 'bin', 'python');
const environment = { ...process.env, REDIS_URL: `redis://127.0.0.1:${port}/0`, CELERY_PREFIX: 'celery:', PYTHONPATH: '.', C_FORCE_ROOT: '1', PYTHONDONTWRITEBYTECODE: '1' };
const inPython = { cwd: join(here, '..', 'python'), env: environment };
const worker = start(python, ['-m', 'celery', '-A', 'celery_app', 'worker', '--concurrency', '1', '--pool', 'solo'], inPython);
const sender = start(python, [join(here, 'celery_results.py')], inPython);
const results = () => sender.out.split('\n').filter((line) => line === 'result').length;

await eventually('Celery returns results', () => {
  if (sender.exitCode !== null) throw new Error(`the sender of tasks has ended: ${sender.out}`);
  return results() >= 3;
});
await eventually('jobs are done on both sides', () => sides.every((side) => side.times.length > 100));

const killed = Date.now();
servers[0].kill('SIGKILL');
const before = results();
const gaps = {};
await Promise.all(sides.map(async (side) => {
  const first = () => side.times.find((time) => time > killed + 200);
  await eventually(`${side.name}: a job after the failover`, first);
  gaps[side.name] = first() - killed;
}));
await eventually('Celery returns results after the failover', () => results() > before + 2);
await sleep(2000);

const named = await sentinels[0].call('SENTINEL', 'GET-MASTER-ADDR-BY-NAME', SERVICE);
const now = watchers[ports.indexOf(Number(named[1]))];
const figures = {};
for (const side of sides) {
  figures[side.name] = await side.finish(now).catch((error) => { problems.push(String(error)); });
}
isOver = true;
await sampling;
if (Number(named[1]) === master) problems.push('the Sentinels still name the master that was killed');
if (gaps.redbouncer > gaps.directly + NOISE_MS) problems.push(`the first job came later than directly: ${JSON.stringify(gaps)}`);
if (peak > CAP) problems.push(`${peak} connections of redbouncer on a server with a cap of ${CAP}`);
if (sender.out.includes('wrong')) problems.push(`Celery: ${sender.out}`);
console.log(`${problems.length > 0 ? 'FAIL' : 'ok'}: ${flags.workers} Workers and ${flags.events} QueueEvents, ${peak} of ${CAP} connections of redbouncer at the most`);
for (const side of sides) {
  const { jobs, lost, twice, stalled } = figures[side.name] ?? {};
  console.log(`  ${side.name}: first job ${gaps[side.name]} ms after the kill; ${jobs} jobs done, ${twice} twice (${stalled} stalled), ${lost} lost by replication`);
}
console.log(`  Celery: ${before} results before the kill, ${results() - before} after it`);
problems.forEach((problem) => console.error(problem));
if (problems.length > 0) console.error(`--- redbouncer's log ends with ---\n${proxy.out.slice(-4000)}`);
await Promise.all(sides.map((side) => side.close()));
for (const child of [sender, worker]) child.kill('SIGKILL');
process.exit(problems.length > 0 ? 1 : 0);
