// The dialog of one connection: its client, and the commands that end it.

import { bytes, client, duration, holder, KINDS } from './words.js';

const WHY = {
  WATCH: 'until EXEC, DISCARD or UNWATCH',
  MULTI: 'until EXEC or DISCARD',
  SUBSCRIBE: 'until its last subscription ends',
  MONITOR: 'until the client leaves',
  TRACKING: 'until CLIENT TRACKING OFF',
  'NO-TOUCH': 'until CLIENT NO-TOUCH OFF',
  'blocking call': 'until the call ends',
  WAIT: 'until the reply to WAIT',
  'own connection': 'until the reply',
  'connection state': 'until the client leaves',
};

const SHARED = {
  control: 'Used by redbouncer itself: listings, kills and the search for orphans.',
  shared: 'A lane: commands of many clients go over it. It is closed when no client needs it.',
  blocking: 'One connection for all blocked clients of this user.',
  pubsub: 'One connection for all subscribers of this user.',
};

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function facts(rows) {
  const list = element('dl');
  for (const [name, value] of rows) {
    if (value !== undefined && value !== null && value !== '' && value !== false) list.append(element('dt', name), element('dd', String(value)));
  }
  return list;
}

// A command to copy. Without a clipboard (plain HTTP on another host) a click selects it.
function command(text) {
  const line = element('div', undefined, { class: 'command' });
  const code = element('code', text);
  const copy = element('button', 'Copy', { type: 'button' });
  copy.addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText(text);
      copy.textContent = 'Copied';
    } catch {
      getSelection().selectAllChildren(code);
    }
  });
  line.append(code, copy);
  return line;
}

// redis-cli with the way to this proxy.
function cli({ listen }) {
  const url = listen.find((address) => address.startsWith('redis')) ?? listen[0] ?? '';
  return `redis-cli ${url.startsWith('unix:') ? `-s ${url.slice('unix:'.length)}` : `-u ${url}`}`;
}

// What names the connection as long as it is held by the same holder.
function identity(cell) {
  return [cell.node, cell.server_id, cell.kind, cell.client?.id ?? cell.holder, cell.client?.pin].join(' ');
}

export class Details {
  #dialog;
  #body;
  #open = null;

  constructor(dialog) {
    this.#dialog = dialog;
    this.#body = dialog.querySelector('#details-body');
    dialog.addEventListener('close', () => (this.#open = null));
    dialog.addEventListener('click', (event) => event.target === dialog && dialog.close());
  }

  open(cell, picture) {
    this.#open = { identity: identity(cell) };
    const { why } = holder(cell);
    this.#dialog.querySelector('#details-title').textContent = `${KINDS[cell.kind] ?? cell.kind}${why && `, ${why}`}`;
    this.#fill(cell, picture);
    this.#dialog.showModal();
  }

  // A second later: how long it is held now, or that it is no more.
  update(picture) {
    if (!this.#open) return;
    const cell = picture.cells.rows.find((row) => identity(row) === this.#open.identity);
    const held = this.#body.querySelector('[data-held]');
    if (held) held.textContent = cell ? duration(cell.seconds) : 'no longer held';
  }

  #fill(cell, picture) {
    const { who, why } = holder(cell);
    const about = facts([
      ['holder', who],
      ['reason', why && (WHY[why] ? `${why}: ${WHY[why]}` : why)],
      ['state', cell.phase],
      ['held for', duration(cell.seconds)],
      ['node', cell.node],
      ['on the server', cell.server_id && `CLIENT LIST id=${cell.server_id}${cell.local_port ? `, our port ${cell.local_port}` : ''}`],
      ['since', new Date(Date.now() - cell.seconds * 1000).toLocaleTimeString('en-GB')],
    ]);
    [...about.querySelectorAll('dt')].find((term) => term.textContent === 'held for').nextSibling.dataset.held = '';
    const parts = [about];
    if (cell.client) parts.push(...this.#client(cell, picture));
    else parts.push(...this.#shared(cell, picture));
    this.#body.replaceChildren(...parts);
  }

  // No client holds it alone, so there is none to end.
  #shared(cell, picture) {
    return [
      element('p', SHARED[cell.kind] ?? 'A clean connection that waits for its next user.', { class: 'hint' }),
      element('h3', 'Renew it'),
      command(`${cli(picture)} PROXY RECONNECT`),
      element('p', 'All connections to the server are replaced as they become free. No client notices.', { class: 'hint' }),
    ];
  }

  // What the client was when it got the connection, and what it is now.
  #client({ client: held, now = {}, server_id: connection, node }, picture) {
    const parts = [
      element('h3', client({ id: held.id, name: held.name, peer: held.address })),
      facts([
        ['id', held.id],
        ['name', now.name ?? held.name],
        ['address', held.address],
        ['user', held.user],
        ['library', now.library],
        ['database', now.database],
        ['last command', now.command ?? held.command],
        ['connected for', now.age !== undefined && duration(now.age)],
        ['silent for', now.idle !== undefined && duration(now.idle)],
        ['buffered', now.memory !== undefined && bytes(now.memory)],
      ]),
      element('h3', 'End it'),
      command(`${cli(picture)} CLIENT KILL ID ${held.id}`),
      element('p', 'The connection to the server is released at once. The client gets a closed connection.', { class: 'hint' }),
    ];
    // Nodes of a cluster count their connections each for itself.
    if (connection && !node) {
      parts.push(element('p', 'Or whichever client holds this connection when the command arrives:', { class: 'hint' }));
      parts.push(command(`${cli(picture)} PROXY KILL CONNECTION ${connection}`));
    }
    return parts;
  }
}
