// BullMQ: the backend this is all about. Every object opens its own connections, as it does in an application.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { after, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { FlowProducer, Queue, QueueEvents, Worker } from 'bullmq';
import { Redis } from 'ioredis';
import { eventually, gone, rows, unique, url } from './server.mjs';

const connection = { url };

describe('BullMQ', () => {
  const prefix = unique('bullmq');
  const open = [];

  function make(Kind, ...args) {
    const options = { connection, prefix };
    const made = args.length === 2 ? new Kind(args[0], args[1], options) : new Kind(...args, options);
    made.on('error', () => {});
    open.push(made);
    return made;
  }

  // Everything that one test has opened, so that no more than one test's blocked calls exist at once.
  async function closeAll() {
    await Promise.all(open.splice(0).map((each) => each.close()));
  }

  after(async () => {
    await closeAll();
    const redis = new Redis(url);
    for await (const keys of redis.scanStream({ match: `${prefix}*`, count: 1000 })) {
      if (keys.length > 0) await redis.unlink(...keys);
    }
    redis.disconnect();
  });

  test('a hundred jobs are done once each, and their results come as events', async () => {
    const queue = make(Queue, 'jobs');
    const events = make(QueueEvents, 'jobs');
    await events.waitUntilReady();
    for (const emitter of [queue, events]) emitter.setMaxListeners(0);
    const runs = new Map();
    make(Worker, 'jobs', async (job) => {
      runs.set(job.data.number, (runs.get(job.data.number) ?? 0) + 1);
      return job.data.number * 2;
    });
    const jobs = await queue.addBulk(Array.from({ length: 100 }, (_, number) => ({ name: 'double', data: { number } })));
    const results = await Promise.all(jobs.map((job) => job.waitUntilFinished(events, 15_000)));
    assert.deepEqual(results, Array.from({ length: 100 }, (_, number) => number * 2));
    assert.ok([...runs.values()].every((times) => times === 1));
    assert.equal((await queue.getJobCounts('completed')).completed, 100);
    await closeAll();
  });

  test('a job added while the worker blocks is taken at once', async () => {
    const queue = make(Queue, 'idle');
    const events = make(QueueEvents, 'idle');
    const worker = make(Worker, 'idle', async () => 'done');
    const drained = new Promise((resolve) => worker.once('drained', resolve));
    await Promise.all([events.waitUntilReady(), worker.waitUntilReady()]);
    await queue.add('first', {}).then((job) => job.waitUntilFinished(events, 10_000));
    await drained;
    const began = Date.now();
    const job = await queue.add('second', {});
    assert.equal(await job.waitUntilFinished(events, 10_000), 'done');
    const took = Date.now() - began;
    assert.ok(took < 2000, `took ${took} ms`);
    await closeAll();
  });

  test('a delayed job is done after its delay and not before', async () => {
    const queue = make(Queue, 'delayed');
    const events = make(QueueEvents, 'delayed');
    await events.waitUntilReady();
    let doneAt;
    make(Worker, 'delayed', async () => {
      doneAt = Date.now();
    });
    const began = Date.now();
    const job = await queue.add('later', {}, { delay: 700 });
    await job.waitUntilFinished(events, 10_000);
    assert.ok(doneAt - began >= 690 && doneAt - began < 3500, `took ${doneAt - began} ms`);
    await closeAll();
  });

  test('a scheduled job repeats', async () => {
    const queue = make(Queue, 'repeat');
    let runs = 0;
    make(Worker, 'repeat', async () => {
      runs += 1;
    });
    await queue.upsertJobScheduler('tick', { every: 300 }, { name: 'tick' });
    await eventually('three runs', () => runs >= 3, 10);
    assert.equal(await queue.removeJobScheduler('tick'), true);
    await closeAll();
  });

  test('a flow runs its children before their parent', async () => {
    const order = [];
    const flow = make(FlowProducer);
    const events = make(QueueEvents, 'flow');
    await events.waitUntilReady();
    make(Worker, 'flow', async (job) => {
      order.push(job.name);
      return job.name === 'parent' ? Object.values(await job.getChildrenValues()).sort() : job.name;
    });
    const children = ['a', 'b', 'c'].map((name) => ({ name, queueName: 'flow' }));
    const { job } = await flow.add({ name: 'parent', queueName: 'flow', children });
    assert.deepEqual(await job.waitUntilFinished(events, 15_000), ['a', 'b', 'c']);
    assert.equal(order.at(-1), 'parent');
    await closeAll();
  });

  test('a failing job is tried again, and its failure is an event', async () => {
    const queue = make(Queue, 'failing');
    const events = make(QueueEvents, 'failing');
    await events.waitUntilReady();
    let tries = 0;
    make(Worker, 'failing', async () => {
      tries += 1;
      throw new Error('no luck');
    });
    const job = await queue.add('fail', {}, { attempts: 3 });
    await assert.rejects(job.waitUntilFinished(events, 10_000), /no luck/);
    assert.equal(tries, 3);
    await closeAll();
  });

  test('a worker is listed by name while it lives', async () => {
    const queue = make(Queue, 'listed');
    const worker = make(Worker, 'listed', async () => {});
    await worker.waitUntilReady();
    await eventually('one worker listed', async () => (await queue.getWorkersCount()) === 1);
    await worker.close();
    await eventually('no worker listed', async () => (await queue.getWorkersCount()) === 0);
    await closeAll();
  });

  test('closing a worker that blocks takes no longer than a moment', async () => {
    const queue = make(Queue, 'closing');
    const worker = make(Worker, 'closing', async () => {});
    await worker.waitUntilReady();
    const listed = new Redis(url);
    const name = `${prefix}:${Buffer.from('closing').toString('base64')}`;
    const list = () => listed.client('LIST');
    await eventually('the worker blocks', async () => rows(await list()).some((row) => row.name === name && row.cmd === 'bzpopmin'));
    const began = Date.now();
    await worker.close();
    const took = Date.now() - began;
    assert.ok(took < 2000, `took ${took} ms`);
    await gone(name, list);
    const job = await queue.add('left', {});
    assert.equal(await job.getState(), 'waiting');
    listed.disconnect();
    await closeAll();
  });

  test('jobs added after a blocked worker was killed are done by the next one', async () => {
    const queue = make(Queue, 'killed');
    const name = `${prefix}:${Buffer.from('killed').toString('base64')}`;
    const redis = new Redis(url);
    const list = () => redis.client('LIST');
    const script = `
      const { Worker } = await import('bullmq');
      new Worker('killed', async () => {}, { connection: { url: process.env.REDIS_URL }, prefix: process.env.PREFIX });`;
    const cwd = fileURLToPath(new URL('..', import.meta.url));
    const options = { cwd, env: { ...process.env, PREFIX: prefix }, stdio: 'ignore' };
    const child = spawn(process.execPath, ['--input-type=module', '-e', script], options);
    try {
      await eventually('the worker blocks', async () => rows(await list()).some((row) => row.name === name && row.cmd === 'bzpopmin'));
    } finally {
      child.kill('SIGKILL');
    }
    await gone(name, list);
    redis.disconnect();
    await queue.addBulk(Array.from({ length: 10 }, (_, number) => ({ name: 'work', data: { number } })));
    const done = [];
    make(Worker, 'killed', async (job) => done.push(job.data.number));
    await eventually('ten jobs done', () => done.length === 10, 10);
    assert.deepEqual(done.sort((a, b) => a - b), Array.from({ length: 10 }, (_, number) => number));
    await closeAll();
  });
});
