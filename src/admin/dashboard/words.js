// Numbers and states in words.

export const KINDS = {
  control: 'control', shared: 'lane', blocking: 'blocking hub', pubsub: 'pub/sub hub', leased: 'lease',
};

// A lease that is held this long is pointed out.
export const LONG_SECONDS = 30;

export function duration(seconds) {
  const [s, m, h] = [Math.floor(seconds % 60), Math.floor(seconds / 60) % 60, Math.floor(seconds / 3600)];
  if (h >= 48) return `${Math.floor(h / 24)} d`;
  if (h > 0) return `${h} h ${m} min`;
  return m > 0 ? `${m} min ${s} s` : `${s} s`;
}

// The same where there is little room.
export function short(seconds) {
  return duration(seconds).replaceAll(/ (d|h|m|s)(in)?/g, '$1');
}

export function bytes(count) {
  const units = ['B', 'KiB', 'MiB', 'GiB'];
  let at = 0;
  for (; count >= 1024 && at < units.length - 1; at += 1) count /= 1024;
  return `${at > 0 && count < 10 ? count.toFixed(1) : Math.round(count)} ${units[at]}`;
}

export function counted(count, one, many = `${one}s`) {
  return `${count.toLocaleString('en')} ${count === 1 ? one : many}`;
}

export function client(row) {
  return row.name ? `${row.name} (${row.id}, ${row.peer})` : `client ${row.id} (${row.peer})`;
}

// Who holds a connection, and why.
export function holder(cell) {
  if (!cell.client) return { who: cell.holder, why: '' };
  const { id, name, address, pin } = cell.client;
  return { who: name || `client ${id} (${address})`, why: pin };
}

// Leases that end with a command are pointed out when they last; those of MONITOR or of a blocking call may.
const LASTING = ['blocking call', 'MONITOR', 'TRACKING', 'NO-TOUCH', 'SUBSCRIBE', 'connection state'];

export function isLong(cell) {
  return cell.client !== undefined && cell.seconds >= LONG_SECONDS && !LASTING.includes(cell.client.pin);
}

// Which kinds the free permits are for: some are kept for one kind alone, the others are open (undefined).
export function freePermits(picture) {
  const { held, max } = picture.connections;
  const kept = picture.permits.flatMap(({ kind, reserved }) => Array(reserved).fill(kind));
  const free = Math.max(0, max - held);
  return [...Array(Math.max(0, free - kept.length)).fill(undefined), ...kept].slice(0, free);
}

// Of lanes and leases, those of which no more can be held. A hub that has its one connection is not short of any.
export function fullKinds(picture) {
  return picture.permits.filter(({ kind, full }) => full && ['shared', 'leased'].includes(kind));
}

// Counters: the sum of the rows whose labels match, in the last 15 minutes and since the start.
export function sum(picture, family, labels = /^/) {
  const rows = (picture.counters[family] ?? []).filter(([label]) => labels.test(label));
  return { recent: rows.reduce((all, row) => all + row[2], 0), total: rows.reduce((all, row) => all + row[1], 0) };
}

// What is an error, in the order of how much it matters.
const ERRORS = [
  ['no connection in time (full pool)', 'pool_full'],
  ['elements popped and lost', 'undelivered', /^lost$/],
  ['clients closed: no server', 'clients_closed', /^no_upstream$/],
  ['clients closed: a connection was lost', 'clients_closed', /^(upstream_lost|lease_lost|subscription_lost|server_changed)$/],
  ['clients closed: no connection for their state', 'clients_closed', /^state_refused$/],
  ['clients closed: too many', 'clients_closed', /^(too_many|too_many_from_address)$/],
  ['clients closed: memory or unread replies', 'clients_closed', /^(memory|output_limit|request_limit)$/],
  ['clients closed: not RESP, or the wrong port', 'clients_closed', /^(protocol_error|http|tls_on_plain_port|plain_on_tls_port|tls_failed|tls_timeout)$/],
  ['connections to the server lost', 'upstream_closed', /^(lost|stalled|cut)\b|\b(lost|stalled|cut)$/],
  ['connections with unexpected data', 'upstream_closed', /\bdesync\b/],
  ['logins refused', 'logins', /^(refused|limited)$/],
  ['logins that could not be checked', 'logins', /^unavailable$/],
  ['failed searches for orphans', 'orphan_rounds', /^(?!judged$)/],
  ['log lines dropped', 'log_lines_dropped'],
];

export function errors(picture) {
  const own = ERRORS.map(([what, family, labels]) => ({ what, ...sum(picture, family, labels) }));
  const replies = (picture.counters.command_errors ?? []).map(([label, total, recent]) => ({ what: `error replies: ${label}`, total, recent }));
  return [...own, ...replies].filter(({ total }) => total > 0).sort((a, b) => b.recent - a.recent);
}

function outage({ upstream }) {
  const { unreachable_seconds: away, login_refused_seconds: refused } = upstream;
  if (away !== undefined) return [`The server is away for ${duration(away)}`, upstream.unreachable_reason];
  return refused !== undefined && [`The server refuses the login of upstream.url for ${duration(refused)}`, upstream.login_refused_reason];
}

function waits(picture) {
  const { held, max } = picture.connections;
  const { lanes, leases } = picture.waits;
  const must = lanes + leases;
  if (must === 0) return false;
  const isWaitedFor = ({ kind }) => (kind === 'leased' ? leases : lanes) > 0;
  const full = fullKinds(picture).filter(isWaitedFor).map((of) => `${of.held} of ${of.max} ${KINDS[of.kind]}s`).join(' and ');
  const what = counted(must, 'command waits', 'commands wait');
  return [`${what} for a connection: ${full || `${held} of ${max}`} are held`, oldest(picture)];
}

// The lease that a command should have ended, or else the one that is held longest.
function oldest(picture) {
  const leases = picture.cells.rows.filter((cell) => cell.client);
  const cell = leases.find(isLong) ?? leases[0];
  if (!cell) return undefined;
  const { who, why } = holder(cell);
  return `Held longest: ${who}, ${why}, for ${duration(cell.seconds)}`;
}

function longLeases(picture) {
  const long = picture.cells.rows.filter(isLong);
  return long.length > 0 && [`${counted(long.length, 'lease lasts', 'leases last')} longer than ${LONG_SECONDS} s`, oldest(picture)];
}

function pause({ paused, waits: { paused: waiting = 0 } }) {
  if (!paused) return false;
  const end = paused.seconds_left === null ? 'until PROXY RESUME' : `for ${duration(paused.seconds_left)} more`;
  return [`Paused for ${duration(paused.seconds)}, ${end}: ${counted(waiting, 'client waits', 'clients wait')}`];
}

const BAD = [
  outage,
  waits,
  (picture) => {
    const { recent } = sum(picture, 'undelivered', /^lost$/);
    return recent > 0 && [`${counted(recent, 'popped element was', 'popped elements were')} lost in the last 15 minutes`];
  },
];

const WARNINGS = [
  pause,
  longLeases,
  ({ state }) => !['serving', 'paused'].includes(state) && [`The proxy is ${state}`],
  ({ waits: { standing = 0 } }) => standing > 0 && [`${counted(standing, 'client waits', 'clients wait')} for a standing lease (MONITOR, CLIENT TRACKING)`],
  ({ memory }) => memory.max > 0 && memory.used > 0.75 * memory.max && [`Clients hold ${bytes(memory.used)} of ${bytes(memory.max)} memory: the largest are not read`],
  (picture) => {
    const { recent } = sum(picture, 'pool_full');
    return recent > 0 && [`${counted(recent, 'command')} got the full-pool error in the last 15 minutes`];
  },
  (picture) => {
    const { recent } = sum(picture, 'clients_closed', /^no_upstream$/);
    return recent > 0 && !outage(picture) && [`${counted(recent, 'client was', 'clients were')} closed in the last 15 minutes because there was no server`];
  },
  ({ connections: { held, max } }) => held >= max && [`All ${max} connections are held`],
];

// What an operator must know first: a level, a sentence, and its reasons.
export function verdict(picture) {
  if (picture.silent) return { level: 'bad', title: 'A worker does not answer', reasons: ['It has not told its clients for 5 s: see the log.'] };
  const tell = (checks) => checks.map((check) => check(picture)).filter(Boolean);
  const [bad, warnings] = [tell(BAD), tell(WARNINGS)];
  const facts = `${counted(picture.clients.count, 'client')} on ${picture.connections.held} of ${picture.connections.max} connections`;
  const found = [...bad, ...warnings];
  if (found.length === 0) return { level: 'good', title: `All is well: ${facts}`, reasons: picture.clients.waiting.count ? [] : ['Nothing waits.'] };
  const [[title, ...details], ...others] = found;
  const reasons = [...new Set([...details, ...others.flat()].filter(Boolean)), facts];
  return { level: bad.length > 0 ? 'bad' : 'warn', title, reasons };
}
