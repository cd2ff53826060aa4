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
  const at = cell.holder.lastIndexOf(', ');
  if (cell.kind === 'leased' && at > 0) return { who: cell.holder.slice(0, at), why: cell.holder.slice(at + 2) };
  return { who: cell.holder, why: '' };
}

// Leases that end with a command are pointed out when they last; those of MONITOR or of a blocking call may.
export function isLong(cell) {
  const { why } = holder(cell);
  return cell.kind === 'leased' && cell.seconds >= LONG_SECONDS && !['', 'blocking call', 'MONITOR', 'TRACKING', 'NO-TOUCH', 'SUBSCRIBE'].includes(why);
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
  ['connections with data that no command waits for', 'upstream_closed', /\bdesync\b/],
  ['logins refused', 'logins', /^(refused|limited)$/],
  ['logins that could not be checked', 'logins', /^unavailable$/],
  ['looks for orphans that failed', 'orphan_rounds', /^(?!judged$)/],
  ['log lines dropped', 'log_lines_dropped'],
];

export function errors(picture) {
  const own = ERRORS.map(([what, family, labels]) => ({ what, ...sum(picture, family, labels) }));
  const replies = (picture.counters.command_errors ?? []).map(([label, total, recent]) => ({ what: `error replies: ${label}`, total, recent }));
  return [...own, ...replies].filter(({ total }) => total > 0).sort((a, b) => b.recent - a.recent);
}

// What an operator must know first: a level, a sentence, and its reasons.
export function verdict(picture) {
  if (picture.silent) return { level: 'bad', title: 'A worker does not answer', reasons: ['It has not told its clients for 5 s: see the log.'] };
  const { held, max } = picture.connections;
  const waiting = picture.clients.waiting;
  const bad = [], warn = [];
  const away = picture.upstream.unreachable_seconds;
  if (away !== undefined) bad.push([`The server is away for ${duration(away)}`, picture.upstream.unreachable_reason]);
  const { lanes = 0, leases = 0, standing = 0 } = picture.waits;
  const long = picture.cells.rows.filter(isLong);
  const oldest = long[0] ?? picture.cells.rows.find(({ kind, clients }) => kind === 'leased' && clients.length > 0);
  const longest = oldest && `Held longest: ${holder(oldest).who}, ${holder(oldest).why}, for ${duration(oldest.seconds)}`;
  const must = lanes + leases;
  if (must > 0) bad.push([`${counted(must, 'command waits', 'commands wait')} for a connection, ${held} of ${max} are held`, longest]);
  else if (long.length > 0) warn.push([`${counted(long.length, 'lease lasts', 'leases last')} longer than ${LONG_SECONDS} s`, longest]);
  if (standing > 0) warn.push([`${counted(standing, 'client waits', 'clients wait')} for a lease that may last (MONITOR, CLIENT TRACKING)`]);
  const memory = picture.memory;
  if (memory.max && memory.used > 0.75 * memory.max) warn.push([`Clients hold ${bytes(memory.used)} of ${bytes(memory.max)} memory: the largest are not read`]);
  const lost = sum(picture, 'undelivered', /^lost$/).recent;
  if (lost > 0) bad.push([`${counted(lost, 'popped element was', 'popped elements were')} lost in the last 15 minutes`]);
  const full = sum(picture, 'pool_full').recent;
  if (full > 0 && must === 0) warn.push([`${counted(full, 'client')} got the full-pool error in the last 15 minutes`]);
  const gone = sum(picture, 'clients_closed', /^no_upstream$/).recent;
  if (gone > 0 && away === undefined) warn.push([`${counted(gone, 'client was', 'clients were')} closed in the last 15 minutes because there was no server`]);
  if (picture.paused) warn.push(['Paused: new commands wait until RESUME']);
  if (picture.state !== 'serving') warn.push([`The proxy is ${picture.state}`]);
  if (held >= max && must === 0) warn.push([`All ${max} connections are held`, 'Nothing waits yet.']);
  const found = [...bad, ...warn];
  const facts = `${counted(picture.clients.count, 'client')} on ${held} of ${max} connections`;
  const level = bad.length ? 'bad' : warn.length ? 'warn' : 'good';
  if (found.length === 0) return { level, title: `All is well: ${facts}`, reasons: waiting.count ? [] : ['Nothing waits.'] };
  const [[title, ...details], ...others] = found;
  return { level, title, reasons: [...details, ...others.flat()].filter(Boolean).concat(facts) };
}
