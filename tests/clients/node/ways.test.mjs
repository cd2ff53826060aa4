// The other ways in: TLS and a Unix socket. What the suites show over TCP is not shown again, only that each library
// gets through, with every kind of traffic, and that TLS is verified.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, describe, test } from 'node:test';
import { Redis } from 'ioredis';
import { Redis as Redis5 } from 'ioredis5';
import { createClient } from 'redis';
import { eventually, unique } from './server.mjs';

const { REDIS_TLS_URL: secured, REDIS_CA, REDIS_SOCKET: path } = process.env;
const skip = secured && REDIS_CA && path ? false : 'REDIS_TLS_URL, REDIS_CA and REDIS_SOCKET are not set';
const ca = skip ? undefined : readFileSync(REDIS_CA);
const big = 'x'.repeat(1 << 20);

for (const [label, Client] of [['ioredis 5', Redis5], ['ioredis 6', Redis]]) {
  const ways = { TLS: () => new Client(secured, { tls: { ca } }), 'a Unix socket': () => new Client({ path }) };
  for (const [way, connect] of Object.entries(ways)) {
    describe(`${label} over ${way}`, { skip }, () => {
      const open = [];
      const client = () => (open.push(connect()), open.at(-1));
      after(() => open.forEach((one) => one.disconnect()));

      test('pipelines, long values, transactions, blocking calls, messages', async () => {
        const [redis, other] = [client(), client()];
        const key = unique('ways');
        await redis.set(key, big);
        assert.equal(await redis.get(key), big);
        const pipeline = redis.pipeline();
        for (let n = 0; n < 500; n += 1) pipeline.echo(n);
        assert.deepEqual((await pipeline.exec()).map(([, reply]) => Number(reply)), [...Array(500).keys()]);
        assert.deepEqual(await redis.multi().strlen(key).del(key).exec(), [[null, big.length], [null, 1]]);
        const popped = other.blpop(`${key}:list`, 5);
        await redis.rpush(`${key}:list`, 'element');
        assert.deepEqual(await popped, [`${key}:list`, 'element']);
        let heard;
        other.on('message', (_, message) => { heard = message; });
        await other.subscribe(key);
        await redis.publish(key, 'hello');
        await eventually('the message', () => heard === 'hello');
        assert.equal(await redis.quit(), 'OK');
      });
    });
  }
}

for (const RESP of [2, 3]) {
  const ways = { TLS: { url: secured, socket: { tls: true, ca } }, 'a Unix socket': { socket: { path } } };
  for (const [way, options] of Object.entries(ways)) {
    test(`node-redis, RESP${RESP}, over ${way}`, { skip }, async () => {
      const redis = createClient({ ...options, RESP });
      await redis.connect();
      const other = await redis.duplicate().connect();
      const key = unique('ways');
      await redis.set(key, big, { EX: 60 });
      assert.equal(await redis.get(key), big);
      const echoes = await Promise.all([...Array(500).keys()].map((n) => redis.echo(String(n))));
      assert.deepEqual(echoes.map(Number), [...Array(500).keys()]);
      const popped = other.blPop(`${key}:list`, 5);
      await redis.rPush(`${key}:list`, 'element');
      assert.equal((await popped).element, 'element');
      let heard;
      await other.subscribe(key, (message) => { heard = message; });
      await redis.publish(key, 'hello');
      await eventually('the message', () => heard === 'hello');
      await Promise.all([other.close(), redis.close()]);
    });
  }
}

test('a certificate of an unknown authority is refused by the library', { skip }, async () => {
  const redis = new Redis(secured, { lazyConnect: true, retryStrategy: null });
  redis.on('error', () => {});
  await assert.rejects(redis.connect());
});

test('TLS to a plain port, and plain to a TLS port, fail at once and say so', { skip }, async () => {
  const attempt = async (client) => {
    const errors = [];
    client.on('error', (error) => errors.push(error.message));
    await assert.rejects(client.connect().then(() => client.ping()));
    return errors.join();
  };
  const options = { lazyConnect: true, retryStrategy: null, maxRetriesPerRequest: 0, enableReadyCheck: true };
  const plain = process.env.REDIS_URL.replace('redis://', 'rediss://');
  assert.match(await attempt(new Redis(plain, { ...options, tls: { ca } })), /wrong version number|packet length/i);
  const wrong = new Redis(secured.replace('rediss://', 'redis://'), options);
  const outcome = await wrong.connect().then(() => wrong.ping(), (error) => error).catch((error) => error);
  wrong.disconnect();
  assert.ok(outcome instanceof Error, String(outcome));
});
