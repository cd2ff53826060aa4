// What the Redis server itself says: who is connected and which jobs are done. One connection over loopback,
// opened before anybody else can fill the server, and left out of every count.

import { Redis } from 'ioredis';

const EVERY_MS = 20;

export class ServerView {
  #redis;
  #self;
  #timer;
  now = 0;
  peak = 0;

  static async open(url) {
    const view = new ServerView();
    view.#redis = new Redis(url, { protocol: 2, connectionName: 'demo-view', maxRetriesPerRequest: 0 });
    view.#redis.on('error', () => {});
    view.#self = await view.#redis.client('ID');
    view.#tick();
    return view;
  }

  // Reads CLIENT LIST now, and so keeps `now` and `peak` right.
  async count() {
    const rows = (await this.#redis.client('LIST')).trim().split('\n');
    this.now = rows.filter((row) => !row.startsWith(`id=${this.#self} `)).length;
    this.peak = Math.max(this.peak, this.now);
    return this.now;
  }

  #tick() {
    this.#timer = setTimeout(async () => {
      await this.count().catch(() => {});
      if (this.#timer) this.#tick();
    }, EVERY_MS);
  }

  // The peak of what follows.
  async newPeak() {
    this.peak = 0;
    await this.count();
  }

  // BullMQ's own account of the jobs it has completed.
  async completed() {
    const pipeline = this.#redis.pipeline();
    for (const key of await this.#redis.keys('bull:*:completed')) pipeline.zcard(key);
    return (await pipeline.exec()).reduce((sum, [, count]) => sum + count, 0);
  }

  // How often each job's side effect happened: Map of job id to count.
  async effects() {
    return new Map(Object.entries(await this.#redis.hgetall('demo:done')));
  }

  // Connections that Redis has answered with `ERR max number of clients reached`.
  async rejected() {
    return Number(/rejected_connections:(\d+)/.exec(await this.#redis.info('stats'))[1]);
  }

  close() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#redis.disconnect();
  }
}
