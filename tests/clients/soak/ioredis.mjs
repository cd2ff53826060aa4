// ioredis: replies, elements and messages that tell whose they are. A command whose connection was lost is sent again by
// the library, so only what is the same then is compared.

import { Redis } from 'ioredis';
import { address, expect, failed, ready, repeat, totals, wrong } from './common.mjs';

const name = `ioredis:${process.pid}`;
const open = (database) => {
  const redis = new Redis({ ...address, db: database, retryStrategy: (times) => Math.min(times * 50, 1000) });
  redis.on('error', failed);
  return redis;
};
const [plain, other, popper, subscriber] = [open(0), open(5), open(0), open(0)];
subscriber.on('message', (channel, text) => {
  if (channel === name && text.startsWith(`${name} `)) totals.ok += 1;
  else wrong(`a message for ${name} on ${channel}`, text);
});
await subscriber.subscribe(name);
const tell = ready();

await Promise.all([
  repeat(10, async (number) => {
    const tags = Array.from({ length: 8 }, (_, index) => `${name} ${number}.${index}`);
    const replies = await Promise.all(tags.map((tag) => plain.echo(tag)));
    tags.forEach((tag, index) => expect('ECHO', replies[index], tag));
  }),
  repeat(20, async (number) => {
    const tag = `${name} ${number}`;
    const replies = await other.multi().set(`${name}:other`, tag, 'EX', 300).get(`${name}:other`).echo(tag).exec();
    expect('GET in a transaction', replies[1][1], tag);
    expect('ECHO in a transaction', replies[2][1], tag);
    // In another database there is no such key.
    expect('GET in another database', await plain.get(`${name}:other`), null);
  }),
  repeat(20, async (number) => {
    await plain.rpush(`${name}:list`, `${name} ${number}`);
    await plain.publish(name, `${name} ${number}`);
  }),
  repeat(0, async () => {
    const popped = await popper.blpop(`${name}:list`, 1);
    if (popped === null || popped[1].startsWith(`${name} `)) totals.ok += 1;
    else wrong('BLPOP', popped);
  }),
]);
tell();
process.exit(0);
