// ioredis, both majors: 5 speaks RESP2, 6 speaks RESP3 unless told otherwise.

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { after, before, describe, test } from 'node:test';
import { Redis } from 'ioredis';
import { Redis as Redis5 } from 'ioredis5';
import { OTHER_DATABASE, blockedIn, eventually, gone, rows, unique, url } from './server.mjs';

const variants = [
  ['ioredis 5', Redis5, {}],
  ['ioredis 6, RESP3', Redis, {}],
  ['ioredis 6, RESP2', Redis, { protocol: 2 }],
];

for (const [label, Client, options] of variants) {
  describe(label, () => {
    const prefix = unique('ioredis');
    const open = [];
    let redis;

    function connect(more = {}) {
      const client = new Client(url, { ...options, ...more });
      open.push(client);
      return client;
    }
    const key = (name) => `${prefix}:${name}`;
    const list = () => redis.client('LIST');

    before(() => {
      redis = connect();
    });
    after(async () => {
      for (const database of [0, OTHER_DATABASE]) {
        await redis.select(database);
        for await (const keys of redis.scanStream({ match: `${prefix}*`, count: 1000 })) {
          if (keys.length > 0) await redis.unlink(...keys);
        }
      }
      for (const client of open) client.disconnect();
    });

    test('gets ready after its check of INFO, and answers PING', async () => {
      const client = connect({ connectionName: unique('name') });
      await eventually('ready', () => client.status === 'ready');
      assert.equal(await client.ping(), 'PONG');
      assert.match(await client.info('server'), /redis_version:/);
      assert.equal(await client.quit(), 'OK');
    });

    test('a pipeline of 500 commands is answered in order', async () => {
      const pipeline = redis.pipeline();
      for (let index = 0; index < 250; index += 1) pipeline.set(key(`p${index}`), index).get(key(`p${index}`));
      const replies = await pipeline.exec();
      assert.equal(replies.length, 500);
      replies.forEach(([error, reply], index) => {
        assert.equal(error, null);
        assert.equal(reply, index % 2 === 0 ? 'OK' : String((index - 1) / 2));
      });
    });

    test('a transaction runs as one, and a discarded one does not', async () => {
      const replies = await redis.multi().set(key('t'), 1).incr(key('t')).get(key('t')).exec();
      assert.deepEqual(replies.map(([, reply]) => reply), ['OK', 2, '2']);
      const client = connect();
      await client.multi({ pipeline: false });
      assert.equal(await client.incr(key('t')), 'QUEUED');
      assert.equal(await client.discard(), 'OK');
      assert.equal(await redis.get(key('t')), '2');
    });

    test('a transaction with a malformed member is refused as a whole', async () => {
      await redis.set(key('abort'), 1);
      await assert.rejects(redis.multi().incr(key('abort')).call('SET', key('abort')).exec(), /EXECABORT/);
      assert.equal(await redis.get(key('abort')), '1');
    });

    test('a member that fails inside a transaction fails alone', async () => {
      const replies = await redis.multi().set(key('mixed'), 'x').incr(key('mixed')).get(key('mixed')).exec();
      assert.match(replies[1][0].message, /not an integer/);
      assert.equal(replies[2][1], 'x');
    });

    test('WATCH lets a transaction through when nobody wrote', async () => {
      const client = connect();
      await client.set(key('w'), 1);
      await client.watch(key('w'));
      const replies = await client.multi().incr(key('w')).exec();
      assert.deepEqual(replies, [[null, 2]]);
    });

    test('WATCH fails a transaction when another client wrote', async () => {
      const client = connect();
      await client.set(key('w2'), 1);
      await client.watch(key('w2'));
      await redis.set(key('w2'), 10);
      assert.equal(await client.multi().incr(key('w2')).exec(), null);
      assert.equal(await client.get(key('w2')), '10');
      // The watch has ended with it.
      assert.deepEqual(await client.multi().incr(key('w2')).exec(), [[null, 11]]);
    });

    test('UNWATCH forgets the watched keys', async () => {
      const client = connect();
      await client.watch(key('w3'));
      await redis.set(key('w3'), 'other');
      await client.unwatch();
      assert.deepEqual(await client.multi().set(key('w3'), 'mine').exec(), [[null, 'OK']]);
    });

    test('a script unknown to the server is NOSCRIPT, then sent in full', async () => {
      const client = connect();
      const lua = `-- ${prefix}\nreturn {KEYS[1], ARGV[1], redis.call('INCR', KEYS[1])}`;
      await assert.rejects(client.evalsha('f'.repeat(40), 0), /NOSCRIPT/);
      client.defineCommand('counted', { numberOfKeys: 1, lua });
      assert.deepEqual(await client.counted(key('lua'), 'x'), [key('lua'), 'x', 1]);
      assert.deepEqual(await client.counted(key('lua'), 'y'), [key('lua'), 'y', 2]);
      const piped = await client.pipeline().counted(key('lua'), 'z').get(key('lua')).exec();
      assert.deepEqual(piped.map(([, reply]) => reply), [[key('lua'), 'z', 3], '3']);
    });

    test('a blocking pop ends with nil when its time is up', async () => {
      const client = connect();
      const began = Date.now();
      assert.equal(await client.blpop(key('empty'), 1), null);
      const took = Date.now() - began;
      assert.ok(took >= 950 && took < 2500, `took ${took} ms`);
      assert.equal(await client.bzpopmin(key('empty'), 0.2), null);
      assert.equal(await client.xread('BLOCK', 200, 'STREAMS', key('empty'), '$'), null);
    });

    test('a blocking pop gets what another client pushes', async () => {
      const name = unique('name');
      const client = connect({ connectionName: name });
      const popped = client.blpop(key('first'), key('second'), 10);
      await blockedIn('blpop', name, list);
      await redis.rpush(key('second'), 'hello');
      assert.deepEqual(await popped, [key('second'), 'hello']);
      assert.equal(await redis.llen(key('second')), 0);
      // The connection is an ordinary one again.
      assert.equal(await client.set(key('after'), 1), 'OK');
    });

    test('BZPOPMIN, BLMOVE and XREAD BLOCK are woken too', async () => {
      const name = unique('name');
      const client = connect({ connectionName: name });
      const lowest = client.bzpopmin(key('z'), 10);
      await blockedIn('bzpopmin', name, list);
      await redis.zadd(key('z'), 1.5, 'marker');
      assert.deepEqual(await lowest, [key('z'), 'marker', '1.5']);

      const moved = client.blmove(key('from'), key('to'), 'LEFT', 'RIGHT', 10);
      await blockedIn('blmove', name, list);
      await redis.rpush(key('from'), 'element');
      assert.equal(await moved, 'element');
      assert.deepEqual(await redis.lrange(key('to'), 0, -1), ['element']);

      const read = client.xread('BLOCK', 10_000, 'STREAMS', key('stream'), '$');
      await blockedIn('xread', name, list);
      const id = await redis.xadd(key('stream'), '*', 'field', 'value');
      assert.deepEqual((await read).flat(), [key('stream'), [[id, ['field', 'value']]]]);
    });

    test('what is pushed after a blocked client was closed is not lost', async () => {
      const name = unique('name');
      const client = connect({ connectionName: name, retryStrategy: () => null });
      client.blpop(key('kept'), 0).catch(() => {});
      await blockedIn('blpop', name, list);
      client.disconnect();
      await gone(name, list);
      await redis.rpush(key('kept'), 'element');
      assert.deepEqual(await redis.lrange(key('kept'), 0, -1), ['element']);
    });

    test('channels and patterns deliver, and end with UNSUBSCRIBE', async () => {
      const subscriber = connect();
      const got = [];
      subscriber.on('message', (channel, message) => got.push([channel, message]));
      subscriber.on('pmessage', (pattern, channel, message) => got.push([pattern, channel, message]));
      assert.equal(await subscriber.subscribe(key('a'), key('b')), 2);
      assert.equal(await subscriber.psubscribe(`${prefix}:c*`), 3);
      assert.equal(await redis.publish(key('a'), 'one'), 1);
      assert.equal(await redis.publish(key('cat'), 'two'), 1);
      await eventually('two messages', () => got.length === 2);
      assert.deepEqual(got, [[key('a'), 'one'], [`${prefix}:c*`, key('cat'), 'two']]);
      assert.equal(await subscriber.unsubscribe(key('a')), 2);
      assert.equal(await redis.publish(key('a'), 'nobody'), 0);
      assert.equal(await subscriber.punsubscribe(`${prefix}:c*`), 1);
      assert.equal(await subscriber.unsubscribe(key('b')), 0);
      // Out of subscriber mode, in either protocol.
      assert.equal(await subscriber.get(key('nothing')), null);
    });

    test('values are bytes, up to a mebibyte and beyond', async () => {
      const every = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte));
      await redis.set(key('bytes'), every);
      assert.deepEqual(await redis.getBuffer(key('bytes')), every);
      const big = randomBytes(1024 * 1024);
      await redis.set(key('big'), big);
      assert.ok((await redis.getBuffer(key('big'))).equals(big));
      const many = await redis.pipeline().get(key('big')).strlen(key('big')).get(key('bytes')).exec();
      assert.equal(many[1][1], big.length);
    });

    test('SELECT changes the database of this client alone', async () => {
      const client = connect();
      await client.set(key('db'), 'zero');
      await client.select(OTHER_DATABASE);
      assert.equal(await client.get(key('db')), null);
      await client.set(key('db'), 'other');
      assert.equal(await redis.get(key('db')), 'zero');
      const direct = connect({ db: OTHER_DATABASE });
      assert.equal(await direct.get(key('db')), 'other');
      await assert.rejects(client.select(100_000), /out of range/);
      assert.equal(await client.get(key('db')), 'other');
    });

    test('a client has a name and an id, and is listed with them', async () => {
      const name = unique('name');
      const client = connect();
      assert.equal(await client.client('SETNAME', name), 'OK');
      assert.equal(await client.client('GETNAME'), name);
      const id = await client.client('ID');
      const own = rows(await list()).filter((row) => row.name === name);
      assert.deepEqual(own.map((row) => row.id), [String(id)]);
      await assert.rejects(client.client('SETNAME', 'with space'), /cannot contain spaces/);
    });

    test('errors are those of the server', async () => {
      await redis.set(key('string'), 'x');
      await assert.rejects(redis.lpush(key('string'), 'y'), /^ReplyError: WRONGTYPE/);
      await assert.rejects(redis.call('NOSUCHCOMMAND', 'a'), /ERR unknown command 'NOSUCHCOMMAND'/);
      await assert.rejects(redis.call('GET'), /ERR wrong number of arguments for 'get' command/);
      const replies = await redis.pipeline().get(key('string')).lpush(key('string'), 1).get(key('string')).exec();
      assert.deepEqual([replies[0][1], replies[2][1]], ['x', 'x']);
      assert.match(replies[1][0].message, /WRONGTYPE/);
    });

    test('SCAN finds every key', async () => {
      const pipeline = redis.pipeline();
      for (let index = 0; index < 1000; index += 1) pipeline.set(key(`scan:${index}`), index);
      await pipeline.exec();
      const found = new Set();
      for await (const keys of redis.scanStream({ match: `${prefix}:scan:*`, count: 100 })) keys.forEach((each) => found.add(each));
      assert.equal(found.size, 1000);
    });

    test('thirty clients at once each get their own replies', async () => {
      const clients = Array.from({ length: 30 }, () => connect());
      await Promise.all(
        clients.map(async (client, index) => {
          for (let round = 0; round < 20; round += 1) {
            const value = `${index}:${round}`;
            const replies = await Promise.all([client.set(key(`own${index}`), value), client.get(key(`own${index}`)), client.echo(value)]);
            assert.deepEqual(replies, ['OK', value, value]);
          }
        }),
      );
      for (const client of clients) client.disconnect();
    });
  });
}
