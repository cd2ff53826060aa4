// Client-side caches: CLIENT TRACKING of node-redis in RESP3, and REDIRECT with ioredis in RESP2.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import Redis from 'ioredis';
import { BasicClientSideCache, createClient } from 'redis';
import { eventually, unique, url } from './server.mjs';

test('no client-side cache of node-redis keeps an old value', async () => {
  const key = `${unique('node-redis-cache')}:k`;
  const open = [];
  async function connect(more) {
    const client = createClient({ url, RESP: 3, ...more });
    client.on('error', () => {});
    open.push(client);
    return client.connect();
  }
  try {
    const writer = await connect({});
    const caches = [];
    // More clients than the server would admit connections.
    const readers = await Promise.all(
      Array.from({ length: 30 }, () => {
        const clientSideCache = new BasicClientSideCache({ ttl: 0, maxEntries: 0, evictPolicy: 'LRU' });
        caches.push(clientSideCache);
        return connect({ clientSideCache });
      }),
    );
    for (let number = 0; number < 20; number += 1) {
      const value = `value ${number}`;
      await writer.set(key, value);
      for (const reader of readers) {
        await eventually('the new value is read', async () => (await reader.get(key)) === value);
        assert.equal(await reader.get(key), value);
      }
    }
    assert.ok(caches.every((cache) => cache.stats().hitCount > 0));
    await writer.del(key);
    for (const reader of readers) await eventually('the key is gone', async () => (await reader.get(key)) === null);
  } finally {
    for (const client of open) client.destroy();
  }
});

// ioredis speaks RESP2: its clients are told over another connection (CLIENT TRACKING ON REDIRECT).
test('no cache beside ioredis keeps an old value', async () => {
  const prefix = unique('ioredis-cache');
  const listener = new Redis(url, { protocol: 2 });
  const open = [listener];
  const caches = [];
  try {
    const to = await listener.client('ID');
    listener.on('messageBuffer', (_channel, keys) => {
      for (const cache of caches) {
        if (keys === null) cache.clear();
        else for (const key of keys) cache.delete(key.toString());
      }
    });
    await listener.subscribe('__redis__:invalidate');
    let hits = 0;
    const readers = await Promise.all(
      Array.from({ length: 30 }, async () => {
        const client = new Redis(url, { protocol: 2 });
        open.push(client);
        assert.equal(await client.call('CLIENT', 'TRACKING', 'ON', 'REDIRECT', to), 'OK');
        const cache = new Map();
        caches.push(cache);
        return async (key) => {
          if (cache.get(key)?.value !== undefined) {
            hits += 1;
            return cache.get(key).value;
          }
          // What is told before the reply comes takes the mark away.
          const mark = {};
          cache.set(key, mark);
          const value = await client.get(key);
          if (cache.get(key) === mark) mark.value = value;
          return value;
        };
      }),
    );
    const writer = new Redis(url, { protocol: 2 });
    open.push(writer);
    for (let number = 0; number < 20; number += 1) {
      const [key, value] = [`${prefix}:${number % 3}`, `value ${number}`];
      await writer.set(key, value);
      for (const read of readers) {
        await eventually('the new value is read', async () => (await read(key)) === value);
        assert.equal(await read(key), value);
      }
    }
    assert.ok(hits > 0);
    await writer.del(`${prefix}:0`);
    for (const read of readers) {
      await eventually('the key is gone', async () => (await read(`${prefix}:0`)) === null);
    }
  } finally {
    for (const client of open) client.disconnect();
  }
});
