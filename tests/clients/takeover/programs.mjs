// Programs beside BullMQ while redbouncer is replaced: subscribers, blocked clients, client-side caches, plain commands, and
// clients that connect anew. Each looks at every reply that it gets.
//
// A program is begun with a stage: the port of redbouncer, a connection to the server itself, the list of problems, and what waits
// for a condition. `finish` ends it, checks what only the end can show, and returns its figures.

import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import { BasicClientSideCache, createClient } from 'redis';

const CHANNELS = 10;
const BLOCK_SECONDS = 1;
// By so much the clocks of two processes may differ.
const EARLY_MS = 20;

const connect = (stage) => new Redis({ host: '127.0.0.1', port: stage.port, enableReadyCheck: false });

// Runs `step` again and again until the returned function is called, which waits for the last one.
function repeatedly(stage, what, step) {
  let isOver = false;
  const ended = (async () => {
    while (!isOver) await step();
  })().catch((error) => stage.problems.push(`${what}: ${error}`));
  return async () => {
    isOver = true;
    await ended;
  };
}

// Subscribers of channels, patterns and shard channels in turn. Messages are numbered: each comes once, in order.
export async function subscribers(stage, count) {
  const last = new Array(count).fill(0);
  const clients = [];
  for (const [number] of last.entries()) {
    const client = connect(stage);
    clients.push(client);
    const channel = number % CHANNELS;
    const hear = (message) => {
      if (Number(message) !== last[number] + 1) stage.problems.push(`subscriber ${number}: ${message} after ${last[number]}`);
      last[number] = Number(message);
    };
    client.on('message', (_, message) => hear(message));
    client.on('pmessage', (_, __, message) => hear(message));
    client.on('smessage', (_, message) => hear(message));
    const subscribe = [
      () => client.subscribe(`channel:${channel}`),
      () => client.psubscribe(`pattern:${channel}:*`),
      () => client.ssubscribe(`shard:${channel}`),
    ];
    await subscribe[number % subscribe.length]();
  }
  let rounds = 0;
  const stop = repeatedly(stage, 'publisher', async () => {
    rounds += 1;
    const round = stage.server.pipeline();
    for (let channel = 0; channel < CHANNELS; channel += 1) {
      round.publish(`channel:${channel}`, rounds).publish(`pattern:${channel}:x`, rounds).spublish(`shard:${channel}`, rounds);
    }
    await round.exec();
    await sleep(200);
  });
  return {
    async finish() {
      await stop();
      await stage.eventually('every message is heard', () => last.every((heard) => heard === rounds));
      return { clients, figures: `${rounds} messages to each of ${count} subscribers` };
    },
  };
}

// Blocked clients: each element is popped once, and nil does not come early.
export async function blocked(stage, count) {
  const taken = new Map();
  let nils = 0;
  const clients = Array.from({ length: count }, () => connect(stage));
  const stops = clients.map((client, number) => repeatedly(stage, `blocked client ${number}`, async () => {
    const begun = performance.now();
    const popped = await client[number % 2 === 0 ? 'blpop' : 'brpop']('takeover:list', BLOCK_SECONDS);
    const waited = performance.now() - begun;
    if (popped) taken.set(popped[1], (taken.get(popped[1]) ?? 0) + 1);
    else nils += 1;
    if (!popped && waited < BLOCK_SECONDS * 1000 - EARLY_MS) stage.problems.push(`nil after ${waited} ms`);
  }));
  let pushed = 0;
  const stop = repeatedly(stage, 'producer', async () => {
    // Now and then so few that most clients wait until their time is over.
    const some = pushed % 100 === 0 ? 50 : 1;
    await stage.server.rpush('takeover:list', ...Array.from({ length: some }, (_, at) => pushed + at));
    pushed += some;
    await sleep(pushed % 100 === 0 ? 1_500 : 30);
  });
  return {
    async finish() {
      await stop();
      await stage.eventually('every element is taken', () => taken.size === pushed);
      await Promise.all(stops.map((each) => each()));
      const twice = [...taken].filter(([, times]) => times !== 1);
      if (twice.length > 0) stage.problems.push(`elements popped more than once: ${twice}`);
      return { clients, figures: `${pushed} elements and ${nils} nils for ${count} blocked clients` };
    },
  };
}

// Client-side caches: a value that was written is read by all of them, however it was cached before. Every second one is
// subscribed as well.
export async function caches(stage, count) {
  let heard = 0;
  let number = 0;
  let reads = 0;
  const watched = [];
  const clients = await Promise.all(Array.from({ length: count }, async (_, at) => {
    const clientSideCache = new BasicClientSideCache({ ttl: 0, maxEntries: 0, evictPolicy: 'LRU' });
    const client = createClient({ url: `redis://127.0.0.1:${stage.port}`, RESP: 3, clientSideCache });
    for (const event of ['error', 'end', 'reconnecting']) {
      client.on(event, (error) => {
        if (!client.mayClose) stage.problems.push(`cache: ${event} ${error ?? ''}`);
      });
    }
    watched.push(clientSideCache);
    await client.connect();
    if (at % 2 === 1) await client.subscribe('takeover:written', () => { heard += 1; });
    return client;
  }));
  const stop = repeatedly(stage, 'caches', async () => {
    number += 1;
    await stage.server.set('takeover:cached', number);
    await stage.server.publish('takeover:written', number);
    const read = async (client) => {
      reads += 1;
      return Number(await client.get('takeover:cached')) === number;
    };
    await Promise.all(clients.map((client, at) => stage.eventually(`cache ${at} reads ${number}`, () => read(client))));
    await sleep(50);
  });
  return {
    async finish() {
      await stop();
      const expected = number * Math.floor(count / 2);
      await stage.eventually('all that was written is heard', () => heard >= expected);
      if (heard !== expected) stage.problems.push(`caches have heard ${heard} messages of ${expected}`);
      if (watched.some((cache) => cache.stats().hitCount === 0)) stage.problems.push('a cache was never of use');
      for (const client of clients) client.mayClose = true;
      return { clients: clients.map((client) => ({ disconnect: () => client.destroy() })), figures: `${reads} reads of ${count} caches` };
    },
  };
}

// Each client counts a key of its own up, in pipelines of different lengths.
export async function counters(stage, count) {
  const counts = new Array(count).fill(0);
  const clients = counts.map(() => connect(stage));
  const stops = clients.map((client, number) => repeatedly(stage, `counter ${number}`, async () => {
    const length = 1 + (counts[number] % 20);
    const pipeline = client.pipeline();
    for (let at = 0; at < length; at += 1) pipeline.incr(`takeover:count:${number}`);
    for (const [error, value] of await pipeline.exec()) {
      counts[number] += 1;
      if (error || value !== counts[number]) stage.problems.push(`counter ${number}: ${error ?? value} for ${counts[number]}`);
    }
    await sleep(10);
  }));
  return {
    async finish() {
      await Promise.all(stops.map((each) => each()));
      for (const [number, expected] of counts.entries()) {
        const value = Number(await stage.server.get(`takeover:count:${number}`));
        if (value !== expected) stage.problems.push(`counter ${number}: ${value} on the server for ${expected}`);
      }
      return { clients, figures: `${counts.reduce((sum, value) => sum + value)} commands of ${count} clients` };
    },
  };
}

// Clients that connect, run one command and leave.
export async function visitors(stage, count) {
  let visits = 0;
  const stops = Array.from({ length: count }, (_, number) => repeatedly(stage, `visitor ${number}`, async () => {
    const client = connect(stage);
    if (await client.echo(`visit ${visits}`) === null) stage.problems.push(`visitor ${number}: no reply`);
    client.mayClose = true;
    await client.quit();
    visits += 1;
    await sleep(20);
  }));
  return {
    async finish() {
      await Promise.all(stops.map((each) => each()));
      return { clients: [], figures: `${visits} connects` };
    },
  };
}
