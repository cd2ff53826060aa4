// The example application of deploy/examples/nestjs: it works, SIGTERM ends it in order, SIGKILL leaves nothing behind.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { after, afterEach, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Redis } from 'ioredis5';
import { eventually, rows, unique, url } from './server.mjs';

const MAIN = fileURLToPath(new URL('../../../deploy/examples/nestjs/dist/main.js', import.meta.url));
const LONG = 20; // seconds, for a start of Node on a busy machine

describe('the NestJS example', () => {
  const prefix = unique('nestjs');
  let redis;
  let app;

  async function start() {
    const env = { ...process.env, REDIS_URL: url, QUEUE_PREFIX: prefix, PORT: '0' };
    app = spawn(process.execPath, [MAIN], { env, stdio: ['ignore', 'pipe', 'inherit'] });
    const [line] = await once(createInterface({ input: app.stdout }), 'line', { signal: AbortSignal.timeout(LONG * 1000) });
    app.base = line.replace('listening on ', '');
  }

  async function end(signal) {
    const ended = once(app, 'exit', { signal: AbortSignal.timeout(LONG * 1000) });
    app.kill(signal);
    const [, by] = await ended;
    return by;
  }

  async function send(mail) {
    const answer = await fetch(`${app.base}/mails`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ to: 'a@example.com', ...mail }),
    });
    assert.equal(answer.status, 201);
  }

  const counts = async () => (await fetch(`${app.base}/mails`)).json();
  // BullMQ names the connections of Workers and QueueEvents by prefix and queue.
  const connections = async () => rows(await redis.client('LIST')).filter((row) => row.name?.startsWith(prefix)).length;
  const gone = () => eventually('no connection of the application', async () => (await connections()) === 0, LONG);

  before(() => {
    redis = new Redis(url);
  });
  afterEach(() => app?.kill('SIGKILL'));
  after(async () => {
    const keys = await redis.keys(`${prefix}:*`);
    if (keys.length) await redis.unlink(keys);
    await redis.quit();
  });

  test('does its jobs and hears of them', async () => {
    await start();
    for (let number = 0; number < 20; number += 1) await send({});
    await eventually('20 mails sent and heard of', async () => {
      const { completed, heard } = await counts();
      return completed === 20 && heard === 20;
    }, LONG);
    assert.equal(await connections(), 2);
  });

  test('SIGTERM lets the job in hand be finished, and closes the connections', async () => {
    await gone();
    await start();
    const before = (await counts()).completed;
    await send({ takes: 2000 });
    await eventually('the mail is being sent', async () => (await counts()).active === 1, LONG);
    assert.equal(await end('SIGTERM'), 'SIGTERM');
    await gone();
    await start();
    const { completed, active, waiting } = await counts();
    assert.deepEqual({ completed, active, waiting }, { completed: before + 1, active: 0, waiting: 0 });
  });

  test('SIGKILL runs no hook, and no connection stays behind', async () => {
    await gone();
    await start();
    const before = (await counts()).completed;
    await send({ takes: 60_000 });
    await eventually('the mail is being sent', async () => (await counts()).active === 1, LONG);
    assert.equal(await end('SIGKILL'), 'SIGKILL');
    await gone();
    await start();
    await send({});
    // The job that was in hand is taken up again when its lock has expired, after 30 s.
    await eventually('the next mail is sent', async () => (await counts()).completed === before + 1, LONG);
  });
});
