// node-redis's client-side cache: CLIENT TRACKING in RESP3.

import assert from 'node:assert/strict';
import { test } from 'node:test';
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
