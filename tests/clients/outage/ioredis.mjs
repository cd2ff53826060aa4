// ioredis with a database in its URL: a writer, whose keys must be in that database alone, and a subscriber.

import { Redis } from 'ioredis';
import { compare, report, sleep, url, work } from './common.mjs';

url.pathname = '/5';
const writer = new Redis(url.href);
const subscriber = new Redis(url.href);
for (const redis of [writer, subscriber]) redis.on('error', () => {});
let heard = -1;
subscriber.on('message', (channel, text) => (heard = Number(text)));
await subscriber.subscribe('outage:ioredis');
console.log('ready');

const result = await work(async (number) => {
  await writer.rpush('outage:ioredis', number);
  await writer.publish('outage:ioredis', number);
}, 20);
await sleep(500);
const found = (await writer.lrange('outage:ioredis', 0, -1)).map(Number);
await writer.select(0);
const strays = await writer.exists('outage:ioredis');
report({ ...result, ...compare(result.acknowledged, found), strays, deaf: heard < result.sent - 5 });
