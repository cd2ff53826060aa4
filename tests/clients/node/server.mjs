// The server under test, and what the suites share. Nothing here, and nothing in the suites, knows what answers
// at REDIS_URL: a Redis server, or something that has to look like one.

import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';

export const url = process.env.REDIS_URL;
if (!url) throw new Error('REDIS_URL is not set: run tests/clients/run HOST PORT');

// Another database than the default one, for SELECT.
export const OTHER_DATABASE = 9;

// A prefix for keys, channels and names that no other test and no other run uses.
export function unique(label) {
  return `clients:${label}:${randomUUID().slice(0, 8)}`;
}

// Polls until `condition` is true; throws after `seconds`, which on a busy machine are few.
export async function eventually(what, condition, seconds = 15) {
  const deadline = Date.now() + seconds * 1000;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`not within ${seconds} s: ${what}`);
    await sleep(10);
  }
}

// The rows of CLIENT LIST, in the text form that every client can return, as objects.
export function rows(list) {
  const row = (line) => Object.fromEntries(line.split(' ').map((pair) => [pair.slice(0, pair.indexOf('=')), pair.slice(pair.indexOf('=') + 1)]));
  return list.trim().split('\n').map(row);
}

// Waits until the server lists the client called `name` as being in `command`: then it blocks there.
export function blockedIn(command, name, list) {
  const there = async () => rows(await list()).some((row) => row.name === name && row.cmd === command);
  return eventually(`${name} listed in ${command}`, there);
}

// Waits until the server no longer lists a client called `name`.
export function gone(name, list) {
  return eventually(`${name} gone`, async () => !rows(await list()).some((row) => row.name === name));
}
