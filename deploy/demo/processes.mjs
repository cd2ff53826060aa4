// The processes of the demo: Redis, redbouncer, the backend. Each is started in a process group of its own, so
// that Ctrl-C reaches the demo alone, which then ends them in order; none is ever looked for by name.

import { spawn } from 'node:child_process';
import { openSync, readFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';

const running = new Set();

function launch(command, args, options) {
  const child = spawn(command, args, { detached: true, ...options });
  running.add(child);
  child.ended = new Promise((resolve) => {
    child.on('exit', (code, signal) => resolve({ code, signal }));
    child.on('error', (error) => resolve({ error }));
  });
  child.ended.then(() => running.delete(child));
  return child;
}

export function killAll() {
  for (const child of running) child.kill('SIGKILL');
}

// Polls until `condition` holds a value other than undefined or false; undefined when `seconds` have passed.
export async function until(seconds, condition) {
  const deadline = Date.now() + seconds * 1000;
  for (;;) {
    const value = await condition();
    if (value !== undefined && value !== false) return value;
    if (Date.now() > deadline) return undefined;
    await sleep(20);
  }
}

function freePort(host) {
  return new Promise((resolve, reject) => {
    const server = createServer().on('error', reject);
    server.listen(0, host, () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

function lastLines(file) {
  return readFileSync(file, 'utf8').trim().split('\n').slice(-5).join('\n');
}

export async function startRedis({ host, password, directory, name, maxclients }) {
  const port = await freePort(host);
  const log = join(directory, `${name}.log`);
  const addresses = [...new Set(['127.0.0.1', host])];
  const args = ['--port', port, '--bind', ...addresses, '--requirepass', password, '--maxclients', maxclients];
  args.push('--save', '', '--appendonly', 'no', '--dir', directory, '--logfile', log);
  const child = launch('redis-server', args.map(String), { stdio: 'ignore' });
  const ready = await until(5, () => child.exitCode !== null || readOrEmpty(log).includes('Ready to accept'));
  if (!ready || child.exitCode !== null) throw new Error(`redis-server did not start:\n${lastLines(log)}`);
  return { port, child, url: (address) => `redis://:${password}@${address}:${port}` };
}

function readOrEmpty(file) {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return '';
  }
}

export async function startProxy({ binary, host, upstream, maxConnections, directory }) {
  const [port, adminPort] = [await freePort(host), await freePort('127.0.0.1')];
  const log = join(directory, 'redbouncer.log');
  const args = ['--listen', `${host}:${port}`, '--admin', `127.0.0.1:${adminPort}`];
  args.push('--max-connections', String(maxConnections));
  const child = launch(binary, args, {
    // By the environment, not as a flag: `ps` shows flags, and this one holds a password.
    env: { ...process.env, REDBOUNCER_UPSTREAM: upstream },
    stdio: ['ignore', openSync(log, 'w'), openSync(log, 'a')],
  });
  const admin = `http://127.0.0.1:${adminPort}`;
  let failure;
  child.on('error', (error) => (failure = error));
  const ready = await until(10, async () => {
    if (failure || child.exitCode !== null) return true;
    return (await fetch(`${admin}/ready`).catch(() => undefined))?.ok;
  });
  if (failure) throw new Error(`${binary} cannot be run: ${failure.message}`);
  if (!ready || child.exitCode !== null) throw new Error(`redbouncer did not get ready:\n${lastLines(log)}`);
  return { port, admin, child, log };
}

export function startBackend({ place, script, url, start }) {
  const [command, ...args] = [...place.prefix, process.execPath, script];
  const child = launch(command, args, {
    env: { ...process.env, REDIS_URL: url, START: String(start) },
    stdio: ['pipe', 'pipe', 'ignore'],
  });
  const said = new Set();
  const backend = {
    child,
    errors: [],
    // What an operator would quote: the server's refusal rather than the broken pipe that follows it.
    get error() {
      return backend.errors.find((text) => text.includes('ERR')) ?? backend.errors[0] ?? 'no error was reported';
    },
    heard: (seconds, line) => until(seconds, () => said.has(line) || (child.exitCode !== null ? true : undefined)),
    add(count, delay = 0) {
      said.delete(`ADDED ${count}`);
      child.stdin.write(`add ${count} ${delay}\n`);
      return backend.heard(10, `ADDED ${count}`);
    },
  };
  child.stdin.on('error', () => {});
  createInterface({ input: child.stdout }).on('line', (line) => {
    if (line.startsWith('FAILED ')) backend.errors.push(line.slice('FAILED '.length));
    else said.add(line);
  });
  return backend;
}
