// `make demo`: the same BullMQ backend, killed and started again ten times, first directly on a Redis and then
// through redbouncer, with the Redis server's own CLIENT LIST beside it.
//
//   node demo.mjs --proxy PATH_OF_REDBOUNCER [--starts 10] [--cap 8] [--keep]
//
// Exits 1 when a promise is broken. Afterwards the proxy stays up until Enter or Ctrl-C, unless nobody could press it
// (stdin is no terminal, CI or DEMO_EXIT is set). With --keep it stays up in any case, until SIGINT or SIGTERM.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { openNetwork } from './network.mjs';
import { poolPicture, statusOf } from './pool-view.mjs';
import { killAll, startBackend, startProxy, startRedis, until } from './processes.mjs';
import { blockedClients, ServerView } from './server-view.mjs';

const CONNECTIONS = 35; // 10 Queues, 10 Workers with 2 each, 5 QueueEvents
const BLOCKED = 15; // of them: the Workers and the QueueEvents
const JOBS = 20; // per start, done before it is killed
const JOBS_LEFT = 10; // per start, delayed, so that the next start finds them
const LEFT_FOR_MS = 1000;
const READY_SECONDS = 15;
const JOBS_SECONDS = 30;
const FEW = 100; // what a small cloud plan sells, and more than most
const VANISHED_SECONDS = 35; // a half-open client is known within 30 s

const { values: flags } = parseArgs({
  options: { proxy: { type: 'string' }, starts: { type: 'string' }, cap: { type: 'string' }, keep: { type: 'boolean' } },
});
const binary = flags.proxy;
const starts = Number(flags.starts ?? 10);
const cap = Number(flags.cap ?? 8);
if (!binary) {
  console.error('usage: demo.mjs --proxy PATH_OF_REDBOUNCER [--starts 10] [--cap 8] [--keep]');
  process.exit(64);
}
const attended = process.stdin.isTTY && !process.env.CI && !process.env.DEMO_EXIT;
const keeps = attended || flags.keep;

const password = 'demo';
const script = join(dirname(fileURLToPath(import.meta.url)), 'backend.mjs');
const directory = mkdtempSync(join(tmpdir(), 'redbouncer-demo-'));
const network = openNetwork();
const broken = [];

function promise(kept, text) {
  if (!kept) broken.push(text);
}

let cleaned = false;
function cleanUp() {
  if (cleaned) return;
  cleaned = true;
  killAll();
  network.remove();
  rmSync(directory, { recursive: true, force: true });
}
process.on('exit', cleanUp);
let interrupted = () => process.exit(130);
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => interrupted());

// One start of the backend, from its first connection to its sudden end.
async function oneStart({ number, url, view, jobs, readySeconds, last, look, lookLast }) {
  await view.newPeak();
  const place = network.place();
  const began = Date.now();
  const backend = startBackend({ place, script, url, start: number });
  const ready = (await backend.heard(readySeconds, 'READY')) === true && backend.child.exitCode === null;
  const readyAfter = Date.now() - began;
  if (ready) {
    await backend.add(JOBS);
    jobs.added += JOBS;
    await until(JOBS_SECONDS, async () => (await view.completed()) >= jobs.added);
  }
  const waiting = ready && number === 1 ? await look?.() : undefined;
  if (ready && last) await lookLast?.();
  const connections = await view.count();
  if (ready && !last) {
    await backend.add(JOBS_LEFT, LEFT_FOR_MS);
    jobs.added += JOBS_LEFT;
  }
  place.kill(backend.child);
  const refused = await view.rejected();
  const error = refused > 0 ? `Redis refused ${refused} connections (max number of clients reached)` : backend.error;
  const due = jobs.added - (ready && !last ? JOBS_LEFT : 0);
  return { ready, readyAfter, connections, peak: view.peak, done: await view.completed(), due, error, place, waiting };
}

function report(number, start) {
  const seconds = (start.readyAfter / 1000).toFixed(1);
  const state = start.ready ? `ready after ${seconds} s` : `NOT READY within ${seconds} s`;
  const count = `${String(start.connections).padStart(3)} clients on the server (peak ${start.peak})`;
  const error = start.ready ? '' : `; ${start.error}`;
  console.log(`  start ${String(number).padStart(2)}: ${state}, ${count}, ${start.done} of ${start.due} jobs done${error}`);
  if (start.waiting) console.log(`            ${start.waiting}`);
}

// Up to `count` starts against `url`; stops after the first that does not get ready.
async function restarts({ count, url, view, readySeconds = READY_SECONDS, look, lookLast }) {
  const jobs = { added: 0 };
  const done = [];
  for (let number = 1; number <= count; number += 1) {
    const start = await oneStart({ number, url, view, jobs, readySeconds, last: number === count, look, lookLast });
    done.push(start);
    report(number, start);
    if (!start.ready) break;
  }
  const effects = await view.effects();
  const once = [...effects.values()].filter((times) => Number(times) === 1).length;
  return { starts: done, added: jobs.added, completed: await view.completed(), once, effects: effects.size };
}

// Ends what the starts left: their sockets learn of each other, so nothing is said to an address that is gone.
async function bury(outcome, close) {
  for (const { place } of outcome.starts) place.mend();
  await close();
  await sleep(300);
  for (const { place } of outcome.starts) place.remove();
}

function promiseJobs(label, { added, completed, once, effects }) {
  const text = `${label}: ${added} jobs added, ${completed} completed, ${effects} had an effect, ${once} exactly once`;
  promise(completed === added && effects === added && once === added, text);
}

async function directly(name, options) {
  const redis = await startRedis({ host: network.host, password, directory, name, maxclients: options.maxclients });
  const view = await ServerView.open(redis.url('127.0.0.1'));
  const outcome = await restarts({ url: redis.url(network.host), view, ...options });
  await bury(outcome, async () => {
    view.close();
    redis.child.kill('SIGTERM');
    await redis.child.ended;
  });
  return outcome;
}

// Who is blocked, and the connections that carry all of it. Idle workers come to rest after a moment.
const waiters = { blocked: 0, leased: 0 };
async function whoWaits(url, view) {
  let seen = { count: 0, commands: new Map() };
  await until(10, async () => {
    seen = await blockedClients(url).catch(() => seen);
    return seen.count >= BLOCKED;
  });
  const kinds = await view.proxyConnections();
  waiters.blocked = seen.count;
  waiters.leased = kinds.get('leased') ?? 0;
  const words = (map) => [...map].map(([name, count]) => `${count} ${name}`).join(', ');
  return `${seen.count} of them blocked (${words(seen.commands)}), carried by: ${words(kinds)}`;
}

function table(direct, through) {
  const cell = (start) => (start ? `${String(start.connections).padStart(7)} (peak ${String(start.peak).padStart(3)})` : '');
  const jobs = (start) => (start ? `${start.done} of ${start.due}` : '').padStart(12);
  const lines = ['', `  Redis' CLIENT LIST, and the jobs done, at the end of each start:`, ''];
  lines.push('  start       directly          jobs    redbouncer         jobs');
  for (let index = 0; index < starts; index += 1) {
    const [a, b] = [direct.starts[index], through.starts[index]];
    lines.push(`  ${String(index + 1).padStart(5)} ${cell(a)} ${jobs(a)} ${cell(b)} ${jobs(b)}`);
  }
  console.log(lines.join('\n'));
}

// The last start's host is gone too: how long until the server has every connection back but the proxy's own?
async function givenBack(outcome, view) {
  const began = Date.now();
  // A stopped process still answers for its connections: only its end closes them.
  if (!network.silent) for (const { place } of outcome.starts) place.mend();
  const seconds = network.silent ? VANISHED_SECONDS : 5;
  console.log(`  waiting up to ${seconds} s for the connections of the last start to be given back`);
  const done = await until(seconds, async () => (await view.count()) <= 1);
  const text = `${view.now} connections left ${((Date.now() - began) / 1000).toFixed(1)} s after the last kill`;
  console.log(`  ${text}`);
  promise(done, `redbouncer: ${text}`);
}

// The pool in the terminal, as it was when the backend was up, and where it is drawn once a second.
async function showPool(proxy, status) {
  promise(status !== undefined, 'redbouncer: no /status during the last start');
  if (status) {
    const { held, max } = status.connections;
    console.log([`\n  The pool during the last start, ${held} of ${max} connections:\n`, ...poolPicture(status)].join('\n    '));
  }
  const page = (await fetch(`${proxy.admin}/`).catch(() => undefined))?.headers.get('content-type');
  promise(page?.startsWith('text/html'), `redbouncer: no dashboard at ${proxy.admin}/`);
  const until = keeps ? '' : ' (make demo KEEP=1 keeps redbouncer running, to look at it)';
  console.log(`\n  The dashboard: ${proxy.admin}/${until}`);
}

async function stop(proxy, view) {
  proxy.child.kill('SIGTERM');
  const end = await Promise.race([proxy.child.ended, sleep(12_000)]);
  const left = await view.count();
  console.log(`  redbouncer stopped: exit ${end?.code ?? end?.signal ?? 'not within 12 s'}, ${left} connections left on the server`);
  promise(end?.code === 0, 'redbouncer: SIGTERM did not end in exit 0');
  promise(left === 0, `redbouncer: ${left} connections left after its end`);
}

async function main() {
  console.log(`A BullMQ backend (10 Queues, 10 Workers, 5 QueueEvents: ${CONNECTIONS} connections) is started ${starts} times.`);
  console.log(`Each start: ${network.kind}.`);

  console.log('\n1. Directly on Redis');
  const direct = await directly('direct', { count: starts, maxclients: 10_000 });
  direct.starts.forEach((start, index) => {
    const expected = CONNECTIONS * (index + 1);
    promise(start.connections === expected, `direct: start ${index + 1} left ${start.connections} clients, not ${expected}`);
  });
  promiseJobs('direct', direct);

  console.log(`\n2. Directly on a Redis with maxclients ${FEW}`);
  const few = await directly('few', { count: 3, maxclients: FEW, readySeconds: 5 });
  const out = few.starts.findIndex((start) => !start.ready) + 1;
  promise(out > 0, `direct: maxclients ${FEW} kept no start from getting ready`);

  console.log(`\n3. Through redbouncer --max-connections ${cap}, on a Redis with maxclients ${FEW}`);
  const redis = await startRedis({ host: network.host, password, directory, name: 'through', maxclients: FEW });
  const view = await ServerView.open(redis.url('127.0.0.1'));
  const upstream = redis.url('127.0.0.1');
  const proxy = await startProxy({ binary, host: network.host, upstream, maxConnections: cap, directory });
  const url = `redis://:${password}@${network.host}:${proxy.port}`;
  const look = () => whoWaits(url, view);
  let status;
  const lookLast = async () => (status = await statusOf(proxy.admin));
  const through = await restarts({ count: starts, url, view, look, lookLast });
  promise(waiters.blocked >= BLOCKED, `redbouncer: only ${waiters.blocked} blocked clients, not ${BLOCKED}`);
  promise(waiters.leased === 0, `redbouncer: ${waiters.leased} blocked clients hold a connection of their own`);
  through.starts.forEach((start, index) => {
    promise(start.ready, `redbouncer: start ${index + 1} did not get ready: ${start.error}`);
    promise(start.peak <= cap, `redbouncer: ${start.peak} connections during start ${index + 1}, more than ${cap}`);
  });
  promise(through.starts.length === starts, `redbouncer: only ${through.starts.length} of ${starts} starts`);
  promiseJobs('redbouncer', through);
  await view.newPeak();
  await givenBack(through, view);
  promise(view.peak <= cap, `redbouncer: ${view.peak} connections after the last start, more than ${cap}`);

  table(direct, through);
  console.log('');
  if (out > 0) console.log(`  Directly with maxclients ${FEW}: out of service at start ${out}: ${few.starts[out - 1].error}.`);
  const peak = Math.max(...through.starts.map((start) => start.peak));
  console.log(`  Through redbouncer: never more than ${peak}, ${through.once} of ${through.added} jobs done exactly once.`);

  await showPool(proxy, status);

  if (keeps && broken.length === 0) {
    const end = attended ? 'Enter or Ctrl-C' : `SIGINT to process ${process.pid}`;
    console.log(`\n  redbouncer keeps running. Try it, until ${end}:\n\n    REDIS_URL=${url}`);
    await new Promise((resolve) => {
      interrupted = resolve;
      if (attended) process.stdin.once('data', resolve);
    });
    process.stdin.pause();
    interrupted = () => process.exit(130);
    console.log('');
  }
  await stop(proxy, view);
  await bury(through, async () => {
    view.close();
    redis.child.kill('SIGTERM');
    await redis.child.ended;
  });
  for (const text of broken) console.log(`  BROKEN: ${text}`);
  return broken.length === 0 ? 0 : 1;
}

main().then(
  (code) => process.exit(code),
  (error) => {
    console.error(`demo: ${error.message}`);
    process.exit(1);
  },
);
