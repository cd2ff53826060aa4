// ioredis with a database in its URL: a writer, whose keys must be in that database alone, and a subscriber.

import { compare, report, sleep, url, work } from './common.mjs';

const { Redis } = await import(process.argv[2]);
const key = `outage:${process.argv[2]}`;
url.pathname = '/5';
const writer = new Redis(url.href);
const subscriber = new Redis(url.href);
for (const redis of [writer, subscriber]) redis.on('error', () => {});
let heard = -1;
subscriber.on('message', (channel, text) => (heard = Number(text)));
await subscriber.subscribe(key);
console.log('ready');

const result = await work(async (number) => {
  await writer.rpush(key, number);
  await writer.publish(key, number);
}, 20);
await sleep(500);
const found = (await writer.lrange(key, 0, -1)).map(Number);
await writer.select(0);
const strays = await writer.exists(key);
report({ ...result, ...compare(result.acknowledged, found), strays, deaf: heard < result.sent - 5 });
