// Users with a name and a password. That each library gets in with the right ones, as the right user, with every kind of
// traffic; and that without them it meets the errors that it knows.

import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { Redis } from 'ioredis';
import { Redis as Redis5 } from 'ioredis5';
import { createClient } from 'redis';
import { eventually, unique } from './server.mjs';

const { REDIS_LOGIN_URL: url, REDIS_LOGINS } = process.env;
const skip = url && REDIS_LOGINS ? false : 'REDIS_LOGIN_URL and REDIS_LOGINS are not set';
const logins = (REDIS_LOGINS ?? '').split(' ').map((login) => login.split(':'));
const [[username, password]] = logins;

const variants = [
  ['ioredis 5', Redis5, {}],
  ['ioredis 6, RESP3', Redis, {}],
  ['ioredis 6, RESP2', Redis, { protocol: 2 }],
];

for (const [label, Client, protocol] of variants) {
  describe(`${label} with a login`, { skip }, () => {
    const open = [];
    const client = (login = {}) => {
      open.push(new Client(url, { ...protocol, ...login, lazyConnect: true, retryStrategy: null, maxRetriesPerRequest: 0 }));
      return open.at(-1);
    };
    after(() => open.forEach((one) => one.disconnect()));

    test('each user is who it is, in every kind of traffic', async () => {
      await Promise.all(logins.map(async ([username, password, who]) => {
        const [redis, other] = [client({ username, password }), client({ username, password })];
        const key = unique(`logins:${username}`);
        const named = await Promise.all(Array.from({ length: 20 }, () => redis.acl('WHOAMI')));
        assert.deepEqual(new Set(named), new Set([who]));
        const popped = other.blpop(`${key}:list`, 5);
        await redis.rpush(`${key}:list`, 'element');
        assert.deepEqual(await popped, [`${key}:list`, 'element']);
        assert.deepEqual(await redis.multi().set(key, '1').acl('WHOAMI').del(key).exec(), [[null, 'OK'], [null, who], [null, 1]]);
        let heard;
        other.on('message', (_, message) => { heard = message; });
        await other.subscribe(key);
        await redis.publish(key, 'hello');
        await eventually('the message', () => heard === 'hello');
      }));
    });

    test('a wrong password, an unknown name and no password are told apart as by Redis', async () => {
      const outcome = async (login) => {
        const redis = client(login);
        let first;
        redis.on('error', (error) => { first ??= error; });
        const failed = await redis.connect().then(() => redis.get('k')).catch((error) => error);
        return String(first ?? failed);
      };
      assert.match(await outcome({ username, password: `${password}!` }), /WRONGPASS/);
      assert.match(await outcome({ username: 'nobody', password }), /WRONGPASS/);
      assert.match(await outcome({}), /NOAUTH/);
    });
  });
}

for (const RESP of [2, 3]) {
  describe(`node-redis, RESP${RESP}, with a login`, { skip }, () => {
    const open = [];
    const connect = (login = {}) => {
      open.push(createClient({ url, ...login, RESP, socket: { reconnectStrategy: false } }).on('error', () => {}));
      return open.at(-1).connect();
    };
    after(() => open.forEach((one) => one.isOpen && one.destroy()));

    test('each user is who it is, in every kind of traffic', async () => {
      await Promise.all(logins.map(async ([username, password, who]) => {
        const [redis, other] = [await connect({ username, password }), await connect({ username, password })];
        const key = unique(`logins:${username}`);
        const named = await Promise.all(Array.from({ length: 20 }, () => redis.aclWhoAmI()));
        assert.deepEqual(new Set(named), new Set([who]));
        const popped = other.blPop(`${key}:list`, 5);
        await redis.rPush(`${key}:list`, 'element');
        assert.equal((await popped).element, 'element');
        assert.deepEqual(await redis.multi().set(key, '1').aclWhoAmI().del(key).exec(), ['OK', who, 1]);
        let heard;
        await other.subscribe(key, (message) => { heard = message; });
        await redis.publish(key, 'hello');
        await eventually('the message', () => heard === 'hello');
      }));
    });

    test('a wrong password, an unknown name and no password are told apart as by Redis', async () => {
      await assert.rejects(connect({ username, password: `${password}!` }), /WRONGPASS/);
      await assert.rejects(connect({ username: 'nobody', password }), /WRONGPASS/);
      await assert.rejects(connect().then((redis) => redis.get('k')), /NOAUTH/);
    });
  });
}
