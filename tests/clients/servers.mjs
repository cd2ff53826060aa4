// What tests with servers of their own share: ports, waiting, and a cluster with its slots shared out evenly.

import { createServer } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';

const SLOTS = 16_384;
const PATIENCE_MS = 30_000;

export function freePort() {
  return new Promise((resolve) => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

// Polls until `condition` is true; throws when that takes too long.
export async function until(what, condition, milliseconds = PATIENCE_MS) {
  for (const deadline = Date.now() + milliseconds; !(await condition()); await sleep(20)) {
    if (Date.now() > deadline) throw new Error(`not within ${milliseconds / 1000} s: ${what}`);
  }
}

// `run(port, options)` starts one server. `name`: what the connections that look at the nodes are called.
export async function startCluster(run, { masters = 3, replicated = false, name = 'look' } = {}) {
  const count = replicated ? 2 * masters : masters;
  const nodes = [];
  for (let index = 0; index < count; index += 1) {
    const [port, bus] = [await freePort(), await freePort()];
    const options = ['--cluster-enabled', 'yes', '--cluster-port', bus, '--cluster-config-file', `nodes-${port}.conf`,
      '--cluster-node-timeout', '2000', '--repl-diskless-sync-delay', '0'];
    const child = run(port, options);
    const redis = new Redis(port, '127.0.0.1', { protocol: 2, connectionName: name });
    redis.on('error', () => {});
    nodes.push({ port, bus, child, redis, address: `127.0.0.1:${port}` });
  }
  const share = Math.ceil(SLOTS / masters);
  for (const [index, { redis }] of nodes.entries()) {
    if (index < masters) await redis.call('CLUSTER', 'ADDSLOTSRANGE', index * share, Math.min((index + 1) * share, SLOTS) - 1);
    await redis.call('CLUSTER', 'SET-CONFIG-EPOCH', index + 1);
    if (index > 0) await redis.call('CLUSTER', 'MEET', '127.0.0.1', nodes[0].port, nodes[0].bus);
  }
  const told = (...words) => Promise.all(nodes.map(({ redis }) => redis.call('CLUSTER', ...words)));
  await until('the nodes know each other', async () => (await told('INFO')).every((text) => text.includes(`cluster_known_nodes:${count}\r`)));
  for (const [index, { redis }] of nodes.slice(masters).entries()) {
    const master = await nodes[index].redis.call('CLUSTER', 'MYID');
    await until('a replica knows its master', () => redis.call('CLUSTER', 'REPLICATE', master).then(() => true, () => false));
  }
  await until('the cluster serves', async () => {
    const replicas = await Promise.all(nodes.slice(masters).map(({ redis }) => redis.info('replication')));
    return (await told('INFO')).every((text) => text.includes('cluster_state:ok')) && replicas.every((text) => text.includes('master_link_status:up'));
  });
  return nodes;
}

// The node that owns `slot` by the word of one that answers.
export async function ownerOf(nodes, slot) {
  const asked = await Promise.any(nodes.map(({ redis }) => redis.call('CLUSTER', 'SLOTS')));
  const row = asked.find(([first, last]) => first <= slot && slot <= last);
  return nodes.find(({ port }) => port === row?.[2][1]);
}

// Moves a slot with its keys as `redis-cli --cluster reshard` does.
export async function moveSlot(nodes, slot, to) {
  const from = await ownerOf(nodes, slot);
  if (!from || from === to) return;
  const [source, target] = await Promise.all([from, to].map(({ redis }) => redis.call('CLUSTER', 'MYID')));
  await to.redis.call('CLUSTER', 'SETSLOT', slot, 'IMPORTING', source);
  await from.redis.call('CLUSTER', 'SETSLOT', slot, 'MIGRATING', target);
  for (;;) {
    const keys = await from.redis.call('CLUSTER', 'GETKEYSINSLOT', slot, 100);
    if (keys.length === 0) break;
    await from.redis.call('MIGRATE', '127.0.0.1', to.port, '', 0, 5000, 'KEYS', ...keys);
  }
  for (const { redis } of [to, from]) await redis.call('CLUSTER', 'SETSLOT', slot, 'NODE', target);
}
