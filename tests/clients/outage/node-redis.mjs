// node-redis with its own reconnection: a writer and a subscriber.

import { createClient } from 'redis';
import { compare, report, sleep, url, work } from './common.mjs';

const writer = createClient({ url: url.href });
const subscriber = createClient({ url: url.href });
for (const redis of [writer, subscriber]) {
  redis.on('error', () => {});
  await redis.connect();
}
let heard = -1;
await subscriber.subscribe('outage:node-redis', (text) => (heard = Number(text)));
console.log('ready');

const result = await work(async (number) => {
  await writer.rPush('outage:node-redis', String(number));
  await writer.publish('outage:node-redis', String(number));
}, 20);
await sleep(500);
const found = (await writer.lRange('outage:node-redis', 0, -1)).map(Number);
report({ ...result, ...compare(result.acknowledged, found), deaf: heard < result.sent - 5 });
