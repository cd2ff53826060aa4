// node-redis with its own reconnection: a writer and a subscriber.

import { compare, report, sleep, url, work } from './common.mjs';

const { createClient } = await import(process.argv[2]);
const key = `outage:${process.argv[2]}`;
const writer = createClient({ url: url.href });
const subscriber = createClient({ url: url.href });
for (const redis of [writer, subscriber]) {
  redis.on('error', () => {});
  await redis.connect();
}
let heard = -1;
await subscriber.subscribe(key, (text) => (heard = Number(text)));
console.log('ready');

const result = await work(async (number) => {
  await writer.rPush(key, String(number));
  await writer.publish(key, String(number));
}, 20);
await sleep(500);
const found = (await writer.lRange(key, 0, -1)).map(Number);
report({ ...result, ...compare(result.acknowledged, found), deaf: heard < result.sent - 5 });
