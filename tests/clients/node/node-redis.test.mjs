// node-redis, in both protocols.

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { after, before, describe, test } from 'node:test';
import { RESP_TYPES, WatchError, createClient, defineScript } from 'redis';
import { OTHER_DATABASE, blockedIn, eventually, gone, rows, unique, url } from './server.mjs';

for (const RESP of [2, 3]) {
  describe(`node-redis, RESP${RESP}`, () => {
    const prefix = unique('node-redis');
    const open = [];
    let redis;

    async function connect(more = {}) {
      const client = createClient({ url, RESP, ...more });
      client.on('error', () => {});
      open.push(client);
      return client.connect();
    }
    const key = (name) => `${prefix}:${name}`;
    const list = () => redis.sendCommand(['CLIENT', 'LIST']).then(String);

    before(async () => {
      redis = await connect();
    });
    after(async () => {
      for (const database of [0, OTHER_DATABASE]) {
        await redis.select(database);
        for await (const keys of redis.scanIterator({ MATCH: `${prefix}*`, COUNT: 1000 })) {
          if (keys.length > 0) await redis.unlink(keys);
        }
      }
      for (const client of open) if (client.isOpen) client.destroy();
    });

    test('connects, answers PING, and leaves when its replies are in', async () => {
      const client = await connect();
      assert.equal(await client.ping(), 'PONG');
      const last = client.incr(key('last'));
      await client.close();
      assert.equal(await last, 1);
    });

    test('commands of one turn are answered in order', async () => {
      const values = Array.from({ length: 250 }, (_, index) => String(index));
      const replies = await Promise.all(values.flatMap((value) => [redis.set(key('p'), value), redis.get(key('p'))]));
      assert.deepEqual(replies, values.flatMap((value) => ['OK', value]));
    });

    test('a pipeline and a transaction return all their replies', async () => {
      assert.deepEqual(await redis.multi().set(key('t'), '1').incr(key('t')).get(key('t')).exec(), ['OK', 2, '2']);
      assert.deepEqual(await redis.multi().incr(key('t')).incr(key('t')).execAsPipeline(), [3, 4]);
      await assert.rejects(redis.multi().incr(key('t')).addCommand(['SET', key('t')]).exec());
      assert.equal(await redis.get(key('t')), '4');
    });

    test('WATCH lets a transaction through when nobody wrote, and fails it when somebody did', async () => {
      const client = await connect();
      await client.watch(key('w'));
      assert.deepEqual(await client.multi().set(key('w'), '1').exec(), ['OK']);
      await client.watch(key('w'));
      await redis.set(key('w'), '10');
      await assert.rejects(client.multi().incr(key('w')).exec(), WatchError);
      assert.equal(await client.get(key('w')), '10');
      await client.watch(key('w'));
      await redis.set(key('w'), '20');
      await client.unwatch();
      assert.deepEqual(await client.multi().incr(key('w')).exec(), [21]);
    });

    test('a script unknown to the server is NOSCRIPT, then sent in full', async () => {
      const counted = defineScript({
        SCRIPT: `-- ${prefix}\nreturn redis.call('INCRBY', KEYS[1], ARGV[1])`,
        NUMBER_OF_KEYS: 1,
        parseCommand(parser, name, by) {
          parser.pushKey(name);
          parser.push(String(by));
        },
        transformReply: (reply) => reply,
      });
      const client = await connect({ scripts: { counted } });
      await assert.rejects(client.evalSha('f'.repeat(40)), /NOSCRIPT/);
      assert.equal(await client.counted(key('lua'), 2), 2);
      assert.equal(await client.counted(key('lua'), 3), 5);
    });

    test('a blocking pop ends with null when its time is up', async () => {
      const client = await connect();
      const began = Date.now();
      assert.equal(await client.blPop(key('empty'), 1), null);
      const took = Date.now() - began;
      assert.ok(took >= 950 && took < 2500, `took ${took} ms`);
      assert.equal(await client.bzPopMin(key('empty'), 0.2), null);
    });

    test('a blocking pop gets what another client pushes', async () => {
      const name = unique('name');
      const client = await connect({ name });
      const popped = client.blPop([key('first'), key('second')], 10);
      await blockedIn('blpop', name, list);
      await redis.rPush(key('second'), 'hello');
      assert.deepEqual({ ...(await popped) }, { key: key('second'), element: 'hello' });

      const lowest = client.bzPopMin(key('z'), 10);
      await blockedIn('bzpopmin', name, list);
      await redis.zAdd(key('z'), { score: 1.5, value: 'marker' });
      assert.deepEqual({ ...(await lowest) }, { key: key('z'), value: 'marker', score: 1.5 });

      const several = client.bzmPop(10, [key('z2')], 'MIN', { COUNT: 2 });
      await blockedIn('bzmpop', name, list);
      await redis.zAdd(key('z2'), [{ score: 1, value: 'a' }, { score: 2, value: 'b' }]);
      assert.deepEqual((await several).members.map((member) => ({ ...member })), [{ value: 'a', score: 1 }, { value: 'b', score: 2 }]);
    });

    test('what is pushed after a blocked client was closed is not lost', async () => {
      const name = unique('name');
      const client = await connect({ name });
      client.blPop(key('kept'), 0).catch(() => {});
      await blockedIn('blpop', name, list);
      client.destroy();
      await gone(name, list);
      await redis.rPush(key('kept'), 'element');
      assert.deepEqual(await redis.lRange(key('kept'), 0, -1), ['element']);
    });

    test('channels and patterns deliver, and end with UNSUBSCRIBE', async () => {
      const subscriber = await connect();
      const got = [];
      const listen = (message, channel) => got.push([channel, message]);
      await subscriber.subscribe([key('a'), key('b')], listen);
      await subscriber.pSubscribe(`${prefix}:c*`, listen);
      assert.equal(await redis.publish(key('a'), 'one'), 1);
      assert.equal(await redis.publish(key('cat'), 'two'), 1);
      await eventually('two messages', () => got.length === 2);
      assert.deepEqual(got, [[key('a'), 'one'], [key('cat'), 'two']]);
      await subscriber.unsubscribe(key('a'), listen);
      assert.equal(await redis.publish(key('a'), 'nobody'), 0);
      await subscriber.pUnsubscribe(`${prefix}:c*`, listen);
      await subscriber.unsubscribe(key('b'), listen);
      assert.equal(await subscriber.get(key('nothing')), null);
    });

    test('values are bytes, up to a mebibyte and beyond', async () => {
      const bytes = redis.withTypeMapping({ [RESP_TYPES.BLOB_STRING]: Buffer });
      const every = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte));
      await redis.set(key('bytes'), every);
      assert.deepEqual(await bytes.get(key('bytes')), every);
      const big = randomBytes(1024 * 1024);
      await redis.set(key('big'), big);
      assert.ok((await bytes.get(key('big'))).equals(big));
    });

    test('hashes, sorted sets and streams have the shapes of the protocol', async () => {
      await redis.hSet(key('h'), { a: '1', b: '2' });
      assert.deepEqual({ ...(await redis.hGetAll(key('h'))) }, { a: '1', b: '2' });
      await redis.zAdd(key('zs'), { score: 0.1, value: 'x' });
      assert.equal(await redis.zScore(key('zs'), 'x'), 0.1);
      await redis.xAdd(key('s'), '1-1', { field: 'value' });
      const read = await redis.xRead({ key: key('s'), id: '0' });
      assert.equal(JSON.stringify(read).includes('"field":"value"') || JSON.stringify(read).includes('"field","value"'), true);
    });

    test('SELECT changes the database of this client alone', async () => {
      const client = await connect({ database: OTHER_DATABASE });
      await client.set(key('db'), 'other');
      assert.equal(await redis.get(key('db')), null);
      await client.select(0);
      assert.equal(await client.get(key('db')), null);
      await assert.rejects(client.select(100_000), /out of range/);
    });

    test('a client has a name and an id, and is listed with them', async () => {
      const name = unique('name');
      const client = await connect();
      assert.equal(await client.clientSetName(name), 'OK');
      assert.equal(await client.clientGetName(), name);
      const id = await client.clientId();
      assert.deepEqual(rows(await list()).filter((row) => row.name === name).map((row) => row.id), [String(id)]);
      const info = await client.clientInfo();
      assert.equal(info.name, name);
      assert.equal(info.id, id);
    });

    test('errors are those of the server', async () => {
      await redis.set(key('string'), 'x');
      await assert.rejects(redis.lPush(key('string'), 'y'), /WRONGTYPE/);
      await assert.rejects(redis.sendCommand(['NOSUCHCOMMAND']), /ERR unknown command 'NOSUCHCOMMAND'/);
      assert.equal(await redis.get(key('string')), 'x');
    });

    test('SCAN finds every key', async () => {
      await Promise.all(Array.from({ length: 1000 }, (_, index) => redis.set(key(`scan:${index}`), 'x')));
      const found = new Set();
      for await (const keys of redis.scanIterator({ MATCH: `${prefix}:scan:*`, COUNT: 100 })) keys.forEach((each) => found.add(each));
      assert.equal(found.size, 1000);
    });
  });
}
