// BullMQ on a Redis Cluster: with ioredis's own Cluster client, and through redbouncer as on one server, at the same time.
//
//   node bench/cluster.mjs --proxy PATH_OF_REDBOUNCER [--workers 100] [--events 20] [--seconds 20]
//
// Three masters with a replica each. Each side has its own queues on all of them, and jobs are added to every queue without a pause while the
// slots of queues move, a master is replaced by CLUSTER FAILOVER, and at last one is killed with SIGKILL. Exits 1 if a job of redbouncer's side
// is lost, or done twice without a master that was killed, if a node ever has more than 8 connections of redbouncer, or if the first job after
// the kill is done more than a second later than on the other side.

import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { Queue, QueueEvents, Worker } from 'bullmq';
import { Cluster, Redis } from 'ioredis';
import { freePort, moveSlot, ownerOf, startCluster, until } from '../servers.mjs';

const text = (value) => ({ type: 'string', default: value });
const { values } = parseArgs({ options: { proxy: { type: 'string' }, workers: text('100'), events: text('20'), seconds: text('20') } });
const [workers, events, seconds] = ['workers', 'events', 'seconds'].map((key) => Number(values[key]));
const CAP = 8;
const PACE_MS = 20; // between two jobs of one queue
const SETTLED_MS = 90_000; // a job of a worker that lost its lock is found after 30 s, and once more

const directory = mkdtempSync(join(tmpdir(), 'redbouncer-cluster-'));
const children = [];
process.on('exit', () => {
  children.forEach((child) => child.kill('SIGKILL'));
  rmSync(directory, { recursive: true, force: true, maxRetries: 5 });
});

function run(program, args, stdio = 'ignore') {
  const child = spawn(program, args.map(String), { stdio });
  children.push(child);
  return child;
}

// A queue's name is its hash tag, so that BullMQ's scripts have all keys in one slot.
function side(name, connect) {
  const names = Array.from({ length: events }, (_, index) => `${name}-${index}`);
  const own = { name, names, added: new Map(), done: new Map(), errors: new Map() };
  const options = (queue) => ({ connection: connect(), prefix: `{${queue}}` });
  const heard = (part) => part.on('error', ({ message }) => own.errors.set(message, (own.errors.get(message) ?? 0) + 1));
  own.queues = names.map((queue) => heard(new Queue(queue, options(queue))));
  own.events = names.map((queue) => heard(new QueueEvents(queue, options(queue))));
  const work = async ({ data }) => own.done.set(data.number, [...(own.done.get(data.number) ?? []), Date.now()]);
  own.workers = Array.from({ length: workers }, (_, index) => names[index % events])
    .map((queue) => heard(new Worker(queue, work, options(queue))));
  own.ready = () => Promise.all([...own.queues, ...own.events, ...own.workers].map((part) => part.waitUntilReady()));
  return own;
}

let next = 0;
let isOver = false;

// Adds jobs to one queue until the end. Only those that were acknowledged count.
async function feed(own, index) {
  while (!isOver) {
    const number = (next += 1);
    const at = Date.now();
    const job = own.queues[index].add('job', { number }, { removeOnComplete: true });
    const added = await Promise.race([job.then(() => true, () => false), sleep(30_000).then(() => false)]);
    if (added) own.added.set(number, { at, queue: own.names[index] });
    await sleep(PACE_MS);
  }
}

const [proxyPort, adminPort] = [await freePort(), await freePort()];
const nodes = await startCluster((port, options) => run('redis-server', ['--port', port, '--bind', '127.0.0.1', '--save', '', '--dir', directory, ...options]), { replicated: true });
run(values.proxy, ['--listen', `127.0.0.1:${proxyPort}`, '--admin', `127.0.0.1:${adminPort}`, '--max-connections', CAP,
  '--upstream', `redis-cluster://${nodes.slice(0, 3).map(({ address }) => address).join(',')}`], ['ignore', 'inherit', 'inherit']);
await until('redbouncer is ready', () => fetch(`http://127.0.0.1:${adminPort}/ready`).then(({ ok }) => ok, () => false));

const starts = nodes.slice(0, 3).map(({ port }) => ({ host: '127.0.0.1', port }));
const direct = side('direct', () => new Cluster(starts, { redisOptions: { maxRetriesPerRequest: null, protocol: 2 } }));
const proxied = side('proxied', () => ({ host: '127.0.0.1', port: proxyPort, maxRetriesPerRequest: null }));
const sides = [direct, proxied];
await Promise.all(sides.map((own) => own.ready()));

let most = 0;
async function look() {
  const lists = await Promise.all(nodes.filter(({ isDead }) => !isDead).map(({ redis }) => redis.client('LIST').catch(() => '')));
  for (const list of lists) most = Math.max(most, list.split('\n').filter((row) => / name=redbouncer:/.test(row)).length);
}
const looking = setInterval(look, 100);
const lists = await Promise.all(nodes.map(({ redis }) => redis.client('LIST')));
const others = Math.max(...lists.map((list) => list.trim().split('\n').filter((row) => !/ name=(redbouncer:|look)/.test(row)).length));
await look();
console.log(`${workers} Workers, ${events} Queues, ${events} QueueEvents on each side: at most ${others} connections to a node directly, ${most} through redbouncer`);

const feeding = sides.flatMap((own) => own.names.map((_, index) => feed(own, index)));
const pause = () => sleep((seconds * 1000) / 4);
const slotOf = (queue) => nodes[0].redis.call('CLUSTER', 'KEYSLOT', queue);
const masterOf = async (queue) => ownerOf(nodes.filter(({ isDead }) => !isDead), await slotOf(queue));

await pause();
let moved = 0;
for (const own of sides) {
  for (const queue of own.names) {
    const slot = await slotOf(queue);
    const owner = await ownerOf(nodes, slot);
    await moveSlot(nodes, slot, nodes.slice(0, 3).find((node) => node !== owner));
    moved += 1;
  }
}
console.log(`${moved} slots with queues have moved`);
await pause();
const replica = nodes[3];
await replica.redis.call('CLUSTER', 'FAILOVER');
await until('the replica is master', async () => (await replica.redis.info('replication')).includes('role:master'));
console.log('a master was replaced by CLUSTER FAILOVER');
await pause();
const twiceBefore = sides.map((own) => [...own.done.values()].filter((times) => times.length > 1).length);

// A queue of each side with the same master.
let victim;
const watched = {};
for (const own of sides) {
  for (const queue of own.names) {
    const master = await masterOf(queue);
    victim ??= master;
    if (master === victim) watched[own.name] ??= queue;
  }
}
victim.isDead = true;
victim.child.kill('SIGKILL');
const killed = Date.now();
const firstAfter = (own) => {
  const later = [...own.added].filter(([number, { at, queue }]) => queue === watched[own.name] && at >= killed && own.done.has(number));
  const times = later.map(([number]) => own.done.get(number)[0] - killed);
  return times.length > 0 ? Math.min(...times) : undefined;
};
await until('a job is done after the kill on both sides', () => sides.every((own) => firstAfter(own) !== undefined), 60_000);
await pause();
isOver = true;
await Promise.all(feeding);
const lost = (own) => [...own.added.keys()].filter((number) => !own.done.has(number)).length;
await until('all jobs are done', () => sides.every((own) => lost(own) === 0), SETTLED_MS).catch(() => {});
clearInterval(looking);

let failed = false;
sides.forEach((own, index) => {
  const twice = [...own.done.values()].filter((times) => times.length > 1).length;
  console.log(`${own.name.padStart(8)}: ${own.added.size} jobs added, ${lost(own)} lost, ${twiceBefore[index]} done twice before the kill and ${twice - twiceBefore[index]} after; first job ${firstAfter(own)} ms after the kill; errors: ${[...own.errors].map(([what, count]) => `${count} x ${what}`).join(', ') || 'none'}`);
});
console.log(`at most ${most} of ${CAP} connections to a node through redbouncer`);
failed ||= lost(proxied) > lost(direct) || twiceBefore[1] > twiceBefore[0] || most > CAP || firstAfter(proxied) > firstAfter(direct) + 1000;
console.log(failed ? 'FAIL' : 'ok');
process.exit(failed ? 1 : 0);
