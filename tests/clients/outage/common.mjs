// What the Node programs of this suite share: told to stop by a line on stdin, they print one line of JSON.

import { setTimeout as sleep } from 'node:timers/promises';

export const url = new URL(process.env.REDIS_URL);
export { sleep };

let stopped = false;
process.stdin.once('data', () => (stopped = true));

// Calls `send(number)` until told to stop, one call at a time; counts what was acknowledged and what failed.
export async function work(send, pause) {
  const acknowledged = [];
  const errors = {};
  let sent = 0;
  let lastError = 0;
  for (let number = 0; !stopped; number += 1) {
    sent += 1;
    try {
      await send(number);
      acknowledged.push(number);
    } catch (error) {
      const text = String(error.message || error.code || error).slice(0, 100);
      errors[text] = (errors[text] ?? 0) + 1;
      lastError = Date.now();
    }
    await sleep(pause);
  }
  return { sent, acknowledged, errors, quiet: (Date.now() - lastError) / 1000 };
}

// Numbers of `found` more than once, and acknowledged ones that are not there.
export function compare(acknowledged, found) {
  const there = new Set(found);
  return { doubled: found.length - there.size, lost: acknowledged.filter((number) => !there.has(number)).length };
}

// Waits until every job of `acknowledged` is among the `done` (a map of how often), at most so long as a job takes that is
// found stalled twice.
export async function finish(acknowledged, done) {
  const missing = () => acknowledged.filter((job) => !done.has(job));
  for (let tries = 0; missing().length && tries < 200; tries += 1) await sleep(100);
  return { doubled: [...done.values()].filter((times) => times > 1).length, lost: missing().length, missing: missing() };
}

export function report(result) {
  const { acknowledged, ...rest } = result;
  console.log(JSON.stringify({ ...rest, acknowledged: acknowledged.length }));
  process.exit(0);
}
