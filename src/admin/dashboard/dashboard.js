// Draws what /events tells, once a second. Names come from clients, so all text is set as text and never as markup.

import { Chart } from './chart.js';
import { Details } from './details.js';
import { bytes, client, counted, duration, errors, freePermits, fullKinds, holder, isLong, KINDS, short, sum, verdict } from './words.js';

const MOST_CELLS = 500; // permits that are drawn
const STALE_SECONDS = 5;
const AGAIN_MS = 5000;

const by = (id) => document.getElementById(id);
const chart = new Chart(by('chart'), by('chart-summary'));
const details = new Details(by('details'));
let picture, heard, lost, before;

// Text is only touched where it has changed: a selection stays.
function write(node, text) {
  if (node.textContent !== String(text)) node.textContent = text;
}

function mark(node, level) {
  if (level === undefined) delete node.dataset.level;
  else if (node.dataset.level !== level) node.dataset.level = level;
}

// Rows of cells; a row may be { level, cells }. Elements are kept from one picture to the next.
function fill(id, rows, empty = 'none') {
  const table = by(id);
  const [head, body] = [table.tHead.rows[0], table.tBodies[0]];
  const shown = rows.length ? rows : [{ level: 'none', cells: [empty] }];
  while (body.rows.length > shown.length) body.deleteRow(-1);
  shown.forEach((row, index) => {
    const { level, cells } = Array.isArray(row) ? { cells: row } : row;
    const line = body.rows[index] ?? body.insertRow();
    mark(line, level);
    const isNote = cells.length === 1;
    while (line.cells.length > cells.length) line.deleteCell(-1);
    cells.forEach((text, column) => {
      const cell = line.cells[column] ?? line.insertCell();
      cell.className = head.cells[column].className;
      cell.colSpan = isNote ? head.cells.length : 1;
      if (text instanceof Node) {
        if (!cell.firstElementChild) cell.replaceChildren(text);
        else cell.firstElementChild.value = text.value;
      } else {
        write(cell, text);
      }
    });
  });
}

function showVerdict() {
  const { level, title, reasons } = verdict(picture);
  by('verdict').dataset.level = level;
  write(by('verdict-title'), title);
  const list = by('verdict-reasons');
  while (list.children.length > reasons.length) list.lastChild.remove();
  reasons.forEach((reason, index) => write(list.children[index] ?? list.appendChild(document.createElement('li')), reason));
  document.title = `${level === 'good' ? '' : '⚠ '}${title} · redbouncer`;
}

// Between this picture and the one before.
function commandRate() {
  const [now, at] = [sum(picture, 'commands').total, performance.now()];
  const rate = before && at > before.at ? ((now - before.now) * 1000) / (at - before.at) : 0;
  before = { now, at };
  return Math.max(0, Math.round(rate)).toLocaleString('en');
}

function showFigures() {
  const { held, max } = picture.connections;
  const { lanes = 0, leases = 0, standing = 0, blocking = 0, hubs = 0 } = picture.waits;
  const waiting = lanes + leases + standing + blocking + hubs;
  const blocked = picture.clients.blocked;
  const inHubs = (hub) => hub.rows.reduce((all, row) => all + row[1], hub.others);
  const figures = [
    ['clients', picture.clients.count.toLocaleString('en')],
    ['connections', `${held} / ${max}`, held >= max ? 'warn' : undefined],
    ['waiting', waiting, lanes + leases > 0 ? 'bad' : waiting > 0 ? 'warn' : undefined],
    ['blocked in hubs', inHubs(blocked).toLocaleString('en')],
    ['commands / s', commandRate()],
    ['unanswered', picture.lanes.outstanding.toLocaleString('en')],
    ['buffered', bytes(picture.memory.used)],
  ];
  const list = by('figures');
  figures.forEach(([name, value, level], index) => {
    const figure = list.children[index] ?? list.appendChild(document.createElement('div'));
    if (!figure.firstChild) figure.append(document.createElement('dt'), document.createElement('dd'));
    figure.id = `figure-${name.replaceAll(' ', '-')}`;
    mark(figure, level);
    write(figure.firstChild, name);
    write(figure.lastChild, value);
  });
}

function makeCell(tag) {
  const cell = document.createElement(tag);
  const line = (parent, kind) => {
    const part = document.createElement('span');
    part.className = kind;
    return parent.appendChild(part);
  };
  const first = line(cell, 'kind');
  line(first, 'name');
  line(first, 'age');
  line(cell, 'why');
  line(cell, 'what');
  return cell;
}

// A permit that is not held. Some are kept for one kind of connection.
function showFree(cell, kind) {
  cell.className = 'cell free';
  write(cell.querySelector('.name'), 'free');
  write(cell.querySelector('.why'), kind ? `reserved for ${KINDS[kind]}s` : '');
}

// One permit, in the place that it had before. The free ones are last.
function showCell(cell, row) {
  const part = (name) => cell.querySelector(`.${name}`);
  const { who, why } = holder(row);
  cell.className = isLong(row) ? 'cell long' : 'cell';
  cell.dataset.kind = row.kind;
  cell.dataset.phase = row.phase;
  write(part('name'), KINDS[row.kind] ?? row.kind);
  write(part('age'), short(row.seconds));
  write(part('why'), row.phase === 'open' ? why : `${why} ${row.phase}`.trim());
  write(part('what'), who.replace(/^(control$|(lane|blocking hub|pub\/sub hub) of )/, ''));
  cell.title = row.node ? `${row.node}: ${row.holder}` : row.holder;
  cell.onclick = () => details.open(row, picture);
}

const ORDER = Object.keys(KINDS);

// In front of a cluster: what each node has. Its cells stand in the same order.
function showNodes() {
  const { masters = [], slots_uncovered: uncovered = 0 } = picture.upstream.cluster ?? {};
  by('nodes').hidden = masters.length === 0;
  const lines = masters.map(({ node, slots, home, connections, max, permits }) => {
    const full = fullKinds({ permits: permits ?? [] }).map((of) => `${KINDS[of.kind]}s`).join(', ');
    return { level: full ? 'warn' : 'none', cells: [home ? `${node} (home)` : node, slots.toLocaleString('en'), `${connections} / ${max}`, full] };
  });
  if (uncovered > 0) lines.push({ level: 'bad', cells: ['slots without a node', uncovered.toLocaleString('en'), '', ''] });
  fill('nodes', lines);
}

// Nodes in the order of the table, and those that own no slot any more at the end.
function byNode() {
  const order = (picture.upstream.cluster?.masters ?? []).map(({ node }) => node);
  return ({ node }) => (order.indexOf(node) + order.length + 1) % (order.length + 1);
}

function showPool() {
  const { held, max } = picture.connections;
  const node = byNode();
  const rows = picture.cells.rows.toSorted((a, b) => node(a) - node(b) || ORDER.indexOf(a.kind) - ORDER.indexOf(b.kind) || b.seconds - a.seconds);
  const free = freePermits(picture).slice(0, Math.max(0, MOST_CELLS - rows.length));
  const wanted = [...rows, ...free];
  const box = by('cells');
  while (box.children.length > wanted.length) box.lastChild.remove();
  wanted.forEach((row, index) => {
    const isHeld = index < rows.length;
    const tag = isHeld ? 'button' : 'span';
    let cell = box.children[index];
    if (cell?.localName !== tag) {
      const made = makeCell(tag);
      if (isHeld) made.type = 'button';
      if (cell) cell.replaceWith(made);
      else box.append(made);
      cell = made;
    }
    if (isHeld) showCell(cell, row);
    else showFree(cell, row);
  });
  const more = picture.cells.count > rows.length ? `; ${rows.length} are shown` : '';
  const kinds = ORDER.map((kind) => [kind, rows.filter((row) => row.kind === kind).length]).filter(([, count]) => count > 0);
  const line = kinds.map(([kind, count]) => counted(count, KINDS[kind])).join(', ').replace('controls', 'control');
  const full = fullKinds(picture).map((of) => `${KINDS[of.kind]}s are full (${of.held} of ${of.max})`);
  write(by('pool-line'), [`${held} of ${max} held${line && `: ${line}`}${more}`, ...full].join('; '));
  moveStop(box.querySelector('button[tabindex="0"]') ?? box.querySelector('button'));
}

// One cell of the pool is reached by Tab, the others by the arrows.
function moveStop(to) {
  for (const button of by('cells').querySelectorAll('button')) button.tabIndex = button === to ? 0 : -1;
}

by('cells').addEventListener('keydown', (event) => {
  const buttons = [...event.currentTarget.querySelectorAll('button')];
  const at = buttons.indexOf(document.activeElement);
  const next = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
  if (at < 0 || next === undefined) return;
  event.preventDefault();
  const to = buttons[Math.max(0, Math.min(next, buttons.length - 1))];
  moveStop(to);
  to.focus();
});

function showWaiting() {
  const { lanes = 0, leases = 0, standing = 0, blocking = 0 } = picture.waits;
  const claims = [[lanes, 'for a lane'], [leases, 'for a lease'], [standing, 'for a standing lease'], [blocking, 'for a lease to block on (tried on a lane meanwhile)']];
  const shown = claims.filter(([count]) => count > 0).map(([count, what]) => `${count} ${what}`);
  write(by('waiting-line'), shown.join(', ') || 'Nothing waits.');
  const { rows, count } = picture.clients.waiting;
  const lines = rows.map((row) => [client(row), `${row.place.replace('waits for ', '')}: ${row.command}`, duration(row.idle)]);
  if (count > rows.length) lines.push({ level: 'none', cells: [`and ${count - rows.length} more`] });
  fill('waiting', lines);
}

function showHubs() {
  const users = new Map();
  const note = (hub, at) => {
    for (const [user, count] of hub.rows) users.set(user, Object.assign(users.get(user) ?? [0, 0], { [at]: count }));
  };
  note(picture.clients.blocked, 0);
  note(picture.clients.subscribed, 1);
  fill('hubs', [...users].map(([user, counts]) => [user, ...counts]));
}

function showReleases() {
  // Cumulative buckets: each shows what is beyond the one before.
  const buckets = picture.counters.release_seconds ?? [];
  const [, total, recent] = buckets.at(-1) ?? ['', 0, 0];
  const within = (share) => buckets.find(([, , count]) => count >= share * recent)?.[0];
  const ms = (bound) => (bound === '+Inf' ? 'longer' : `${+(bound * 1000).toFixed(1)} ms`);
  const quantile = (share) => (recent > 0 ? `${share * 100} % within ${ms(within(share))}` : '');
  write(by('releases-line'), recent > 0 ? `${counted(recent, 'release')} in the last 15 minutes: ${quantile(0.5)}, ${quantile(0.99)}` : `${counted(total, 'release')} since the start`);
  const rows = buckets.map(([bound, all, lately], index) => {
    const [, allBefore, latelyBefore] = buckets[index - 1] ?? ['', 0, 0];
    const bar = document.createElement('progress');
    bar.max = 1;
    bar.value = recent > 0 ? (lately - latelyBefore) / recent : 0;
    bar.setAttribute('aria-label', `share of releases ${bound === '+Inf' ? 'that took longer' : `within ${ms(bound)}`}`);
    return { all: all - allBefore, cells: [ms(bound), bar, lately - latelyBefore, all - allBefore] };
  });
  fill('releases', rows.filter(({ all }) => all > 0).map(({ cells }) => cells));
}

function showCounters() {
  const rows = (family) => (picture.counters[family] ?? []).filter(([, total]) => total > 0).sort((a, b) => b[2] - a[2] || b[1] - a[1]);
  const lines = (family) => rows(family).slice(0, 8).map(([label, total, recent]) => [label, recent.toLocaleString('en'), total.toLocaleString('en')]);
  fill('client-closes', lines('clients_closed'));
  fill('upstream-closes', lines('upstream_closed'));
  fill('orphans', lines('orphans_killed'));
  fill('errors', errors(picture).map(({ what, total, recent }) => ({ level: recent > 0 ? 'bad' : 'none', cells: [what, recent.toLocaleString('en'), total.toLocaleString('en')] })), 'no error since the start');
}

function showClients() {
  const group = (id, { rows, others, groups }) => {
    const lines = rows.map(([key, count]) => (key ? [key, count.toLocaleString('en')] : { level: 'none', cells: ['unknown', count.toLocaleString('en')] }));
    if (others > 0) lines.push({ level: 'none', cells: [`${groups - rows.length} others`, others.toLocaleString('en')] });
    fill(id, lines);
  };
  group('by-name', picture.clients.by_name);
  group('by-library', picture.clients.by_library);
  group('by-address', picture.clients.by_address);
  fill('largest', picture.clients.largest.map((row) => [client(row), row.place, bytes(row.memory)]));
}

function show() {
  if (by('pause').ariaPressed === 'true') return;
  showVerdict();
  if (picture.silent) return;
  write(by('version'), picture.version);
  const { server, version, mode } = picture.upstream;
  write(by('about'), `${picture.listen.join(', ')} → ${[server, version, mode].filter(Boolean).join(' ')}; up ${duration(picture.uptime)}`);
  write(by('viewers'), `${counted(picture.viewers, 'viewer')}`);
  showFigures();
  showPool();
  showNodes();
  chart.show(picture.connections.max);
  showWaiting();
  showHubs();
  showReleases();
  showCounters();
  showClients();
  details.update(picture);
  document.body.dataset.uptime = picture.uptime;
}

function showLive() {
  const live = by('live');
  const age = heard === undefined ? undefined : (performance.now() - heard) / 1000;
  const isPaused = by('pause').ariaPressed === 'true';
  const patience = STALE_SECONDS + (picture?.every ?? 0);
  const state = isPaused ? 'paused' : age === undefined ? 'none' : age > patience ? 'stale' : 'live';
  live.dataset.state = state;
  const words = { paused: 'paused', none: 'connecting', live: 'live', stale: `no news for ${duration(age)}` };
  write(live, lost && state !== 'live' ? lost : words[state]);
}

function connect() {
  const source = new EventSource('events');
  source.addEventListener('history', (event) => {
    chart.reset();
    chart.add(JSON.parse(event.data).samples);
  });
  source.addEventListener('picture', (event) => {
    picture = JSON.parse(event.data);
    [heard, lost] = [performance.now(), undefined];
    chart.add(picture.samples);
    show();
    showLive();
  });
  // A browser comes back by itself, unless it was refused: there are too many viewers.
  source.addEventListener('error', () => {
    if (source.readyState !== EventSource.CLOSED) return;
    lost = 'refused: too many viewers? trying again';
    setTimeout(connect, AGAIN_MS);
  });
}

by('pause').addEventListener('click', () => {
  const button = by('pause');
  const isPaused = button.ariaPressed === 'true';
  button.ariaPressed = String(!isPaused);
  button.textContent = isPaused ? 'Pause' : 'Go on';
  if (picture) show();
  showLive();
});
setInterval(showLive, 1000);
connect();
