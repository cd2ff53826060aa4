// A Redis, a redbouncer before it, clients of both, and a browser that looks at the dashboard.

import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import { chromium } from 'playwright-core';
import { freePort, startCluster } from '../servers.mjs';

const BROWSERS = ['/usr/bin/chromium', '/usr/bin/google-chrome'];
const ARGUMENTS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync'];
const LOOK = 'look';
const DEADLINE_MS = 15_000;

export const browserPath = process.env.CHROMIUM ?? BROWSERS.find(existsSync);

export function check(what, holds, shown = '') {
  if (!holds) throw new Error(`${what}: ${typeof shown === 'string' ? shown : JSON.stringify(shown)}`);
  console.log(`ok   ${what}`);
}

// Polls until `condition` gives something true; it says what it saw last when it never does.
export async function eventually(what, condition, milliseconds = DEADLINE_MS) {
  const deadline = Date.now() + milliseconds;
  for (;;) {
    const seen = {};
    const value = await condition(seen);
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`not within ${milliseconds / 1000} s: ${what}: ${JSON.stringify(seen)}`);
    await sleep(50);
  }
}

// CLIENT LIST as objects.
export function rows(list) {
  const row = (line) => Object.fromEntries(line.split(' ').map((pair) => [pair.slice(0, pair.indexOf('=')), pair.slice(pair.indexOf('=') + 1)]));
  return list.trim().split('\n').map(row);
}

export class Stage {
  #children = [];
  #clients = [];
  #directory = mkdtempSync(join(tmpdir(), 'redbouncer-dashboard-'));

  constructor(binary, cap) {
    Object.assign(this, { binary, cap });
    process.on('exit', () => this.#end());
  }

  #end() {
    for (const child of this.#children) child.kill('SIGKILL');
    rmSync(this.#directory, { recursive: true, force: true, maxRetries: 5 });
  }

  #run(program, args) {
    const child = spawn(program, args, { stdio: 'ignore' });
    this.#children.push(child);
    child.ended = new Promise((resolve) => child.on('exit', resolve));
    return child;
  }

  // Three masters, each with a third of the slots, and a proxy before them.
  async serveCluster() {
    const nodes = await startCluster((port, options) => this.#runServer(port, options), { name: LOOK });
    this.nodes = nodes.map(({ redis }) => redis);
    [this.port, this.admin] = [await freePort(), await freePort()];
    await this.startProxy(`redis-cluster://127.0.0.1:${nodes[0].port}`);
    this.through = this.client('dashboard-test');
    return nodes.map(({ address }) => address);
  }

  // Without a browser.
  async serve() {
    [this.server, this.port, this.admin] = [await freePort(), await freePort(), await freePort()];
    this.startServer();
    this.direct = new Redis(this.server, '127.0.0.1', { protocol: 2, connectionName: LOOK });
    this.direct.on('error', () => {});
    await this.startProxy();
    this.through = this.client('dashboard-test');
  }

  async start(serve = () => this.serve()) {
    await serve();
    this.context = await chromium.launchPersistentContext(join(this.#directory, 'browser'),
      { executablePath: browserPath, args: ARGUMENTS, headless: true, viewport: { width: 1280, height: 900 } });
  }

  startServer() {
    this.redis = this.#runServer(this.server);
  }

  #runServer(port, options = []) {
    const all = ['--port', port, '--bind', '127.0.0.1', '--save', '', '--dir', this.#directory, ...options];
    return this.#run('redis-server', all.map(String));
  }

  async startProxy(upstream = `redis://127.0.0.1:${this.server}`) {
    this.proxy = this.#run(this.binary, ['--listen', `127.0.0.1:${this.port}`, '--admin', `127.0.0.1:${this.admin}`,
      '--upstream', upstream, '--max-connections', String(this.cap),
      '--set', 'pool.wait_timeout=60s']);
    const ready = () => fetch(`http://127.0.0.1:${this.admin}/ready`).then((answer) => answer.ok, () => false);
    await eventually('redbouncer is ready', ready);
  }

  client(connectionName) {
    const redis = new Redis(this.port, '127.0.0.1', { protocol: 2, connectionName, maxRetriesPerRequest: 0 });
    redis.on('error', () => {});
    this.#clients.push(redis);
    return redis;
  }

  // Connections to the server by kind, as the server lists them.
  async listed(server = this.direct) {
    const kinds = {};
    for (const row of rows(await server.client('LIST'))) {
      const kind = /^redbouncer:.*:(\w+)$/.exec(row.name)?.[1];
      if (kind) kinds[kind] = (kinds[kind] ?? 0) + 1;
    }
    return kinds;
  }

  // The clients of the proxy: it lists the server's others too.
  async clients() {
    return rows(await this.through.client('LIST')).filter(({ name }) => name !== LOOK);
  }

  async close() {
    await this.context?.close();
    for (const redis of [...this.#clients, this.direct, ...(this.nodes ?? [])]) redis?.disconnect();
    this.proxy.kill('SIGTERM');
    await this.proxy.ended;
  }
}
