// Socket.IO with its Redis adapters: each node counts the others by PUBSUB NUMSUB before it asks them something.

import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { after, before, describe, test } from 'node:test';
import { createAdapter, createShardedAdapter } from '@socket.io/redis-adapter';
import { Redis } from 'ioredis5';
import { createClient } from 'redis';
import { Server } from 'socket.io';
import { io as connect } from 'socket.io-client';
import { eventually, unique, url } from './server.mjs';

const NODES = 2;

const ways = [
  ['ioredis 5', async () => new Redis(url), createAdapter, 'key'],
  ['node-redis', opened, createAdapter, 'key'],
  ['node-redis, sharded', opened, createShardedAdapter, 'channelPrefix'],
];

async function opened() {
  const client = createClient({ url });
  await client.connect();
  return client;
}

for (const [label, open, adapter, prefix] of ways) {
  describe(`Socket.IO on ${label}`, () => {
    const nodes = [];
    const sockets = [];
    const clients = [];

    before(async () => {
      const key = unique('socketio');
      for (let index = 0; index < NODES; index += 1) {
        const [pub, sub] = [await open(), await open()];
        clients.push(pub, sub);
        const http = createServer();
        const node = new Server(http, { adapter: adapter(pub, sub, { [prefix]: key, requestsTimeout: 2000 }) });
        node.on('whoami', (answer) => answer(index));
        await new Promise((done) => http.listen(0, '127.0.0.1', done));
        nodes.push(node);
        const socket = connect(`http://127.0.0.1:${http.address().port}`, { transports: ['websocket'] });
        sockets.push(socket);
        await new Promise((done) => socket.on('connect', done));
      }
      await eventually('each node knows the others', async () => (await nodes[0].of('/').adapter.serverCount()) === NODES);
    });
    after(async () => {
      sockets.forEach((socket) => socket.disconnect());
      await Promise.all(nodes.map((node) => node.close()));
      await Promise.all(clients.map((client) => (client.close ?? client.quit).call(client)));
    });

    test('a node finds the sockets of all nodes', async () => {
      const found = await nodes[0].fetchSockets();
      assert.deepEqual(found.map((socket) => socket.id).sort(), sockets.map((socket) => socket.id).sort());
    });

    test('an event for the other nodes is acknowledged by each of them', async () => {
      assert.deepEqual(await nodes[0].serverSideEmitWithAck('whoami'), [1]);
    });

    test('a broadcast reaches the sockets of all nodes, and all acknowledge it', async () => {
      sockets.forEach((socket, index) => socket.on('hello', (answer) => answer(index)));
      const answers = await nodes[1].timeout(2000).emitWithAck('hello');
      assert.deepEqual(answers.sort(), [0, 1]);
    });

    test('a room has the sockets that have joined it, wherever they are', async () => {
      nodes[1].socketsJoin('room');
      await eventually('both have joined', async () => (await nodes[0].in('room').fetchSockets()).length === NODES);
      nodes[0].in(sockets[0].id).socketsLeave('room');
      await eventually('one has left', async () => (await nodes[1].in('room').fetchSockets()).length === NODES - 1);
    });
  });
}
