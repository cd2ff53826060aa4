// Where a backend lives while it is being killed.
//
// With root: one network namespace for each start, joined to this host by a veth pair, so that a start can lose
// its network before it is killed. Then the kernel that held its sockets can say FIN and RST as often as it
// likes: the server hears nothing, as with a host that vanished or a NAT that forgot the connection.
// Without root: a stopped process, whose connections stay open because nobody closes them.

import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';

const PREFIX = 'rbdemo';

function ip(...args) {
  return execFileSync('ip', args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
}

function quietly(action) {
  try {
    action();
  } catch {
    // Already gone: that is what was wanted.
  }
}

// Namespaces that a demo left behind which was itself killed with SIGKILL.
function removeStale() {
  for (const line of ip('netns', 'list').split('\n')) {
    const name = line.split(' ')[0];
    const [prefix, pid] = name.split('-');
    if (prefix === PREFIX && !existsSync(`/proc/${pid}`)) quietly(() => ip('netns', 'del', name));
  }
}

// A /24 of 10.0.0.0/8 in which this host has neither an address nor a route.
function freeSubnet() {
  const taken = ip('-4', 'addr') + ip('-4', 'route', 'show', 'table', 'all');
  for (let tries = 0; tries < 50; tries += 1) {
    const subnet = `10.${200 + Math.floor(Math.random() * 50)}.${Math.floor(Math.random() * 256)}`;
    if (!taken.includes(`${subnet}.`)) return subnet;
  }
  throw new Error('no free 10.x.y.0/24 found');
}

class Namespaces {
  kind = 'own network namespace each; its packets are dropped, then SIGKILL';
  silent = true;
  #places = [];

  constructor() {
    removeStale();
    this.subnet = freeSubnet();
    this.host = `${this.subnet}.1`;
    // Packets for a namespace that is no more must not leave by the default route.
    ip('route', 'add', 'unreachable', `${this.subnet}.0/24`);
    // On lo as well as on each veth: servers bind before the first veth exists.
    ip('addr', 'add', `${this.host}/32`, 'dev', 'lo');
  }

  place() {
    const number = this.#places.length + 1;
    const name = `${PREFIX}-${process.pid}-${number}`;
    const link = `rb${process.pid}.${number}`;
    const address = `${this.subnet}.${10 + number}`;
    ip('netns', 'add', name);
    this.#places.push([name, link]);
    ip('link', 'add', link, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', name);
    ip('addr', 'add', this.host, 'peer', address, 'dev', link);
    ip('link', 'set', link, 'up');
    ip('-n', name, 'addr', 'add', address, 'peer', this.host, 'dev', 'eth0');
    ip('-n', name, 'link', 'set', 'lo', 'up');
    ip('-n', name, 'link', 'set', 'eth0', 'up');
    const iptables = (...args) => ip('netns', 'exec', name, 'iptables', '-w', ...args);
    return {
      prefix: ['ip', 'netns', 'exec', name],
      kill(child) {
        for (const chain of ['OUTPUT', 'INPUT']) iptables('-I', chain, '-j', 'DROP');
        child.kill('SIGKILL');
      },
      // Lets the sockets that are left on both sides find out about each other.
      mend() {
        for (const chain of ['OUTPUT', 'INPUT']) quietly(() => iptables('-F', chain));
      },
      remove: () => this.#removePlace(name, link),
    };
  }

  // The link by itself too: the kernel takes a namespace apart in its own time.
  #removePlace(name, link) {
    quietly(() => ip('link', 'del', link));
    quietly(() => ip('netns', 'del', name));
  }

  // Once the servers are being ended. What the kernel still has to say to dead backends ends here: without the
  // routes it would be sent to the default gateway. (Runs in process.on('exit'), so it waits without an await.)
  remove() {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 300);
    quietly(() => execFileSync('ss', ['-K', 'dst', `${this.subnet}.0/24`], { stdio: 'ignore' }));
    for (const [name, link] of this.#places) this.#removePlace(name, link);
    quietly(() => ip('addr', 'del', `${this.host}/32`, 'dev', 'lo'));
    quietly(() => ip('route', 'del', 'unreachable', `${this.subnet}.0/24`));
  }
}

class Loopback {
  kind = 'no root, so no network namespaces; each start is stopped (SIGSTOP) and kept, which is milder';
  silent = false;
  host = '127.0.0.1';

  place() {
    let stopped;
    return {
      prefix: [],
      kill(child) {
        stopped = child;
        child.kill('SIGSTOP');
      },
      mend() {
        stopped?.kill('SIGKILL');
      },
      remove() {},
    };
  }

  remove() {}
}

export function openNetwork() {
  if (process.env.DEMO_NETWORK === 'loopback' || process.getuid() !== 0) return new Loopback();
  try {
    return new Namespaces();
  } catch (error) {
    // Root in a container without CAP_NET_ADMIN, for example.
    console.log(`network namespaces cannot be made here: ${String(error.stderr ?? error.message).trim()}`);
    return new Loopback();
  }
}
