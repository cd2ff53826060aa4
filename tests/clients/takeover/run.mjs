// Programs while redbouncer is replaced again and again: BullMQ (a Queue, two Workers, QueueEvents), subscribers, blocked clients,
// client-side caches, plain commands, clients that connect anew. They notice nothing.
//
//   node takeover/run.mjs --proxy PATH_OF_REDBOUNCER [--takeovers N] [--subscribers N]
//
// Every job is done once, every event, message and element comes once, no reply is another one's, no cache keeps an old value, no
// connect is refused, no connection closes and no error event comes; in the server's CLIENT LIST there are never more connections
// than the cap of one redbouncer.

import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { Queue, QueueEvents, Worker } from 'bullmq';
import { Redis } from 'ioredis';
import { blocked, caches, counters, subscribers, visitors } from './programs.mjs';
import { freePort, until } from '../servers.mjs';

const text = { type: 'string' };
const { values: flags } = parseArgs({
  options: { proxy: text, takeovers: { ...text, default: '3' }, subscribers: { ...text, default: '100' } },
});
if (!flags.proxy) {
  console.error('usage: node takeover/run.mjs --proxy PATH_OF_REDBOUNCER [--takeovers N] [--subscribers N]');
  process.exit(64);
}

const CAP = 8;
const JOBS_BETWEEN = 40;
const DEADLINE_MS = 60_000;
const directory = mkdtempSync(join(tmpdir(), 'redbouncer-takeover-'));
const children = new Set();
const processes = [];
const problems = [];

// What happens to any connection of BullMQ and of the other programs: they are all of this class, but for the caches.
const watched = new Set(['error', 'close', 'end', 'reconnecting']);
let isOver = false;
const { emit } = Redis.prototype;
Redis.prototype.emit = function (event, ...rest) {
  if (watched.has(event) && !isOver && !this.mayClose) problems.push(`connection: ${event} ${rest.map(String)}`);
  return emit.call(this, event, ...rest);
};

function start(program, args) {
  const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'pipe'] });
  children.add(child);
  child.log = '';
  child.stderr.on('data', (data) => { child.log += data; });
  child.ended = new Promise((resolve) => { child.on('exit', (code) => { children.delete(child); resolve(code); }); });
  return child;
}

process.on('exit', () => {
  for (const child of children) child.kill('SIGKILL');
  rmSync(directory, { recursive: true, force: true });
});

const eventually = (what, condition) => until(what, condition, DEADLINE_MS);

const [serverPort, port] = [await freePort(), await freePort()];
start('redis-server', ['--port', serverPort, '--bind', '127.0.0.1', '--save', '', '--dir', directory]);
const server = new Redis(serverPort, '127.0.0.1', { lazyConnect: true, retryStrategy: () => 50 });
server.on('error', () => {});
isOver = true; // The server may take a moment to listen.
await server.connect().catch(() => {});
await eventually('the server answers', () => server.ping().then(() => true, () => false));
isOver = false;

async function proxy() {
  const child = start(flags.proxy, ['run', '--takeover', '--upstream', `redis://127.0.0.1:${serverPort}`,
    '--listen', `127.0.0.1:${port}`, '--admin', '127.0.0.1:0', '--set', `pool.max_connections=${CAP}`,
    '--set', `takeover.socket=${join(directory, 'takeover.sock')}`, '--set', 'log.format=json']);
  await eventually('redbouncer is ready', () => {
    if (child.exitCode !== null) throw new Error(`redbouncer has ended: ${child.log}`);
    return child.log.includes('"ready"');
  });
  processes.push(child);
  return child;
}

let peak = 0;
async function sample() {
  while (!isOver) {
    const list = (await server.client('LIST')).trim().split('\n');
    peak = Math.max(peak, list.filter((row) => !row.includes(`id=${ownId} `)).length);
    await sleep(20);
  }
}

let current = await proxy();
const ownId = await server.client('ID');
const sampling = sample();
const connection = { host: '127.0.0.1', port };
const [done, completed] = [new Map(), new Map()];
const count = (map, key) => map.set(key, (map.get(key) ?? 0) + 1);
const queue = new Queue('jobs', { connection });
const events = new QueueEvents('jobs', { connection });
const work = async (job) => { count(done, job.data.number); };
const workers = [1, 2].map(() => new Worker('jobs', work, { connection, concurrency: 5, drainDelay: 2 }));
for (const each of [queue, events, ...workers]) each.on('error', (error) => problems.push(`error event: ${error}`));
events.on('completed', ({ jobId }) => count(completed, jobId));
await Promise.all([queue, events, ...workers].map((each) => each.waitUntilReady()));

const stage = { port, server, problems, eventually };
const programs = [
  await caches(stage, 10), await subscribers(stage, Number(flags.subscribers)), await blocked(stage, 16),
  await counters(stage, 16), await visitors(stage, 4),
];

let added = 0;
let isAdding = true;
async function add() {
  for (; isAdding; added += 1) {
    await queue.add('job', { number: added });
    // Now and then all is done, and the workers wait.
    if (added % JOBS_BETWEEN === 0) await sleep(100);
  }
}
const adding = add();

async function replace(takeover) {
  const before = done.size;
  await eventually('jobs are done', () => done.size > before + JOBS_BETWEEN);
  const [old, next] = [current, await proxy()];
  current = next;
  const code = await Promise.race([old.ended, sleep(DEADLINE_MS, 'it has not ended')]);
  if (code !== 0) problems.push(`takeover ${takeover}: ${code}`);
  if (old.log.includes('takeover.client_timeout')) problems.push(`takeover ${takeover}: clients stayed`);
}

for (let takeover = 1; takeover <= Number(flags.takeovers) && problems.length === 0; takeover += 1) {
  await replace(takeover).catch((error) => problems.push(`takeover ${takeover}: ${error}`));
}
isAdding = false;
await adding;
await eventually('every job is done', () => done.size === added).catch((error) => problems.push(String(error)));
await eventually('every event has come', () => completed.size === added).catch((error) => problems.push(String(error)));
const figures = [];
for (const program of programs) {
  const { clients, figures: own } = await program.finish().catch((error) => {
    problems.push(String(error));
    return { clients: [], figures: '' };
  });
  figures.push(own);
  for (const client of clients) {
    client.mayClose = true;
    client.disconnect();
  }
}
isOver = true;
await sampling;
for (const [what, map] of [['done', done], ['completed', completed]]) {
  const twice = [...map].filter(([, times]) => times !== 1);
  if (twice.length > 0 || map.size !== added) problems.push(`${what}: ${map.size} of ${added}, more than once: ${JSON.stringify(twice)}`);
}
if (peak > CAP) problems.push(`${peak} connections on the server with a cap of ${CAP}`);
await Promise.all([...workers, events, queue].map((each) => each.close()));
server.disconnect();
current.kill('SIGTERM');
await current.ended;
console.log(`${problems.length > 0 ? 'FAIL' : 'ok'}: ${flags.takeovers} takeovers, ${added} jobs, ${peak} of ${CAP} connections at the most`);
figures.forEach((own) => console.log(`  ${own}`));
problems.slice(0, 20).forEach((problem) => console.error(problem));
if (problems.length > 0) processes.slice(-3).forEach(({ log }) => console.error(`--- a log ends with ---\n${log.slice(-4000)}`));
process.exit(problems.length > 0 ? 1 : 0);
