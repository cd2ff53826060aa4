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

  // The proxy's connections by kind, as their names say: Map of kind to count.
  async proxyConnections() {
    const kinds = new Map();
    for (const [, kind] of (await this.#redis.client('LIST')).matchAll(/ name=redbouncer:[^ ]*:(\w+) /g)) {
      kinds.set(kind, (kinds.get(kind) ?? 0) + 1);
    }
    return kinds;
  }

  close() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#redis.disconnect();
  }
}

// The blocked clients of the proxy, as its own CLIENT LIST shows them: how many, and for what.
export async function blockedClients(url) {
  const redis = new Redis(url, { protocol: 2, connectionName: 'demo-look', maxRetriesPerRequest: 1 });
  try {
    const rows = (await redis.client('LIST')).trim().split('\n').filter((row) => / flags=\w*b\w* /.test(row));
    const commands = new Map();
    for (const row of rows) {
      const command = /cmd=(\S+)/.exec(row)[1];
      commands.set(command, (commands.get(command) ?? 0) + 1);
    }
    return { count: rows.length, commands };
  } finally {
    redis.disconnect();
  }
}
