// The pool as a picture for a terminal: one cell for each connection that the proxy may open, from its `/status`.

const LETTERS = { control: 'C', shared: 'L', blocking: 'B', pubsub: 'P', leased: 'X' };
const NAMES = { control: 'control', shared: 'lane', blocking: 'blocking hub', pubsub: 'pub/sub hub', leased: 'lease' };
const ORDER = Object.keys(LETTERS);
const ACROSS = 32; // cells in a line

// `/status`, or undefined when it cannot be read.
export async function statusOf(admin) {
  const answer = await fetch(`${admin}/status`).catch(() => undefined);
  return answer?.ok ? answer.json() : undefined;
}

// Lines without a line end: the cells, what their letters mean, and who uses them.
export function poolPicture(status) {
  const { held, max } = status.connections;
  const kinds = status.upstreams.map(({ kind }) => kind).sort((a, b) => ORDER.indexOf(a) - ORDER.indexOf(b));
  const cells = [...kinds.map((kind) => `[${LETTERS[kind] ?? '?'}]`), ...Array(Math.max(0, max - held)).fill('[ ]')];
  const lines = [];
  for (let at = 0; at < cells.length; at += ACROSS) lines.push(cells.slice(at, at + ACROSS).join(''));
  const counts = ORDER.map((kind) => [kind, kinds.filter((other) => other === kind).length]).filter(([, count]) => count > 0);
  const legend = counts.map(([kind, count]) => `${LETTERS[kind]} ${NAMES[kind]}${count > 1 ? ` x ${count}` : ''}`);
  const places = new Map();
  for (const { place } of status.clients) places.set(place, (places.get(place) ?? 0) + 1);
  const clients = [...places].sort(([, a], [, b]) => b - a).map(([place, count]) => `${count} ${PLACES[place] ?? place}`);
  return [...lines, legend.join(', '), `${status.clients.length} clients: ${clients.join(', ')}`];
}

const PLACES = { lane: 'on lanes', 'blocking hub': 'blocked in the hub', 'pubsub hub': 'subscribed' };
