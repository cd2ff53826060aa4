// The dashboard in a headless Chromium: what is on the page is what the servers list.
//
//   node dashboard/run.mjs --proxy PATH_OF_REDBOUNCER [--keep DIRECTORY] [--picture FILE.png] [--files DIRECTORY]
//
// --keep keeps the screenshots. --picture makes the one in the README, with two minutes of load in its chart.
// --files shows the page's files as they are in a directory (src/admin/dashboard), so that a change of them needs no build.
// Needs Debian's chromium (deploy/install.sh browser) or one that the variable CHROMIUM names.

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { execFileSync } from 'node:child_process';
import { parseArgs } from 'node:util';
import { browserPath, check, eventually, Stage } from './stage.mjs';

const text = { type: 'string' };
const { values: flags } = parseArgs({ options: { proxy: text, keep: text, picture: text, files: text } });
if (!flags.proxy) {
  console.error('usage: node dashboard/run.mjs --proxy PATH_OF_REDBOUNCER [--keep DIRECTORY] [--picture FILE.png]');
  process.exit(64);
}
if (!browserPath) {
  console.log('NOT RUN: there is no chromium, so the dashboard was looked at by no browser: deploy/install.sh browser');
  process.exit(0);
}

const CAP = 8;
const HOSTILE = '<img/src=x/onerror=alert(1)>';
const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const stage = new Stage(flags.proxy, CAP);
const problems = [];

// What the page shows, in the words of the servers.
function read(page) {
  return page.evaluate(() => {
    const text = (selector) => document.querySelector(selector)?.textContent ?? '';
    const rows = (id) => [...document.querySelectorAll(`#${id} tbody tr`)].map((row) => [...row.cells].map((cell) => cell.textContent));
    const kinds = {};
    for (const cell of document.querySelectorAll('#cells button')) kinds[cell.dataset.kind] = (kinds[cell.dataset.kind] ?? 0) + 1;
    return {
      kinds,
      free: document.querySelectorAll('#cells .free').length,
      clients: Number(text('#figure-clients dd')),
      blocked: Number(text('#figure-blocked-in-hubs dd')),
      waiting: Number(text('#figure-waiting dd')),
      level: document.querySelector('#verdict').dataset.level,
      title: text('#verdict-title'),
      reasons: text('#verdict-reasons'),
      live: text('#live'),
      waiters: rows('waiting'),
      hubs: rows('hubs'),
      names: rows('by-name'),
      libraries: rows('by-library'),
    };
  });
}

const sorted = (counts) => JSON.stringify(Object.entries(counts).sort());

// Waits until page and servers agree, and `holds` too.
async function agrees(page, what, holds = () => true) {
  const shown = await eventually(what, async (seen) => {
    const [listed, clients, shown] = [await stage.listed(), await stage.clients(), await read(page)];
    const held = Object.values(listed).reduce((all, count) => all + count, 0);
    const blocked = clients.filter((row) => row.flags.includes('b')).length;
    Object.assign(seen, { listed, clients: clients.length, blocked, shown });
    return sorted(shown.kinds) === sorted(listed) && shown.free === CAP - held && shown.clients === clients.length
      && shown.blocked === blocked && holds(shown) && shown;
  });
  console.log(`ok   ${what}: ${shown.clients} clients, ${shown.blocked} blocked, ${JSON.stringify(shown.kinds)}`);
  return shown;
}

async function screenshot(page, name) {
  if (flags.keep) await page.screenshot({ path: join(flags.keep, `${name}.png`), fullPage: true });
}

async function accessible(page, what) {
  if (!(await page.evaluate(() => 'axe' in window))) await page.evaluate(axe);
  const { violations, passes } = await page.evaluate(() => window.axe.run({ resultTypes: ['violations'] }));
  const serious = violations.filter(({ impact }) => ['serious', 'critical'].includes(impact));
  const told = serious.map(({ id, nodes }) => [id, nodes.map(({ target, failureSummary }) => [target, failureSummary])]);
  check(`${what}: axe has no serious finding in ${passes.length} rules`, serious.length === 0 && passes.length > 10, told);
}

function watch(page) {
  page.on('console', (message) => ['error', 'warning'].includes(message.type()) && problems.push(message.text()));
  page.on('pageerror', (error) => problems.push(String(error)));
  page.on('dialog', (dialog) => problems.push(`dialog: ${dialog.message()}`));
  const own = `http://127.0.0.1:${stage.admin}/`;
  page.on('request', (request) => request.url().startsWith(own) || problems.push(`request of ${request.url()}`));
}

// A backend that is restarted: for the chart of the picture in the README.
async function restarts() {
  for (let start = 0; start < 4; start += 1) {
    const backend = Array.from({ length: 35 }, (_, index) => stage.client(`backend-${index % 5}`));
    for (const worker of backend.slice(0, 15)) worker.blpop('jobs', 0).catch(() => {});
    await sleep(9000);
    for (const client of backend) client.disconnect();
    await sleep(3000);
  }
}

// Several loads, from none to a full pool.
async function loads(page) {
  const linger = () => (flags.picture ? sleep(20_000) : undefined);
  await agrees(page, 'no load', ({ level, title }) => level === 'good' && title.startsWith('All is well'));

  const clients = ['orders-api', 'orders-api', 'orders-api', 'cart-api', 'cart-api', 'sessions', HOSTILE].map((name) => stage.client(name));
  await Promise.all(clients.map((client, index) => client.set(`key:${index}`, 'x')));
  await linger();
  const shown = await agrees(page, 'clients on lanes', ({ names }) => names.some(([name, count]) => name === 'orders-api' && count === '3'));
  check('a name of markup is text', shown.names.some(([name]) => name === HOSTILE) && (await page.locator('#by-name img').count()) === 0, shown.names);
  check('libraries are counted', shown.libraries.some(([library]) => library.startsWith('ioredis')), shown.libraries);

  const workers = Array.from({ length: 24 }, (_, index) => stage.client(`mail-worker-${index % 3}`));
  for (const worker of workers) worker.blpop('jobs', 0).catch(() => {});
  const listeners = Array.from({ length: 6 }, () => stage.client('events'));
  await Promise.all(listeners.map((listener) => listener.subscribe('news')));
  await linger();
  const hubs = await agrees(page, 'blocked and subscribed clients', ({ blocked }) => blocked === workers.length);
  check('hubs by user', JSON.stringify(hubs.hubs) === JSON.stringify([['default', '24', '6']]), hubs.hubs);

  // More transactions than there are leases: the others wait.
  const holders = Array.from({ length: 6 }, (_, index) => stage.client(`checkout-${index}`));
  const watched = holders.map((holder) => holder.watch('stock').catch(() => 'closed'));
  await linger();
  const full = await agrees(page, 'a full pool', ({ waiting, level, waiters }) => waiting === 3 && level === 'bad' && waiters.length === waiting);
  check('the verdict names what waits', /^3 commands wait for a connection: 3 of 3 leases are held$/.test(full.title), full.title);
  check('and who holds one longest', full.reasons.startsWith('Held longest: checkout-'), full.reasons);
  check('who waits is listed', full.waiters.every(([client]) => client.startsWith('checkout-')), full.waiters);
  return { clients: [...clients, ...workers, ...listeners], holders, watched };
}

// What a command of the page answers in a shell.
function run(command) {
  const [program, ...args] = command.split(' ');
  return execFileSync(program, args, { encoding: 'utf8' }).trim();
}

// The cell of a lease shows its client, and the command in it frees the connection.
async function ending(page) {
  const before = (await stage.listed()).leased;
  const waitingBefore = (await read(page)).waiting;
  await page.locator('#cells button[data-kind=leased]').first().click();
  const details = page.locator('#details');
  await details.waitFor({ state: 'visible' });
  const [text, command] = [await details.innerText(), await details.locator('code').first().innerText()];
  check('a cell tells its client', /checkout-\d/.test(text) && text.includes('WATCH') && text.includes('ioredis'), text);
  await accessible(page, 'dialog');
  await screenshot(page, 'dialog');
  check(`${command} ends it`, run(command) === '1');
  await eventually('the dialog says that it is over', async () => (await details.innerText()).includes('no longer held'));
  await page.keyboard.press('Escape');
  await details.waitFor({ state: 'hidden' });
  const shown = await agrees(page, 'one that waited has the connection', ({ waiting }) => waiting === waitingBefore - 1);
  check('as many leases as before', shown.kinds.leased === before, shown.kinds);

  await page.locator('#cells button[data-kind=leased]').last().click();
  const other = await details.locator('code').last().innerText();
  check(`${other} ends the client that holds the connection`, other.includes('PROXY KILL CONNECTION') && run(other) === '1');
  await page.keyboard.press('Escape');
  await agrees(page, 'one more that waited has a connection', ({ waiting }) => waiting === waitingBefore - 2);
}

async function keyboard(page) {
  const focused = () => page.evaluate(() => {
    const { id, className, localName, dataset } = document.activeElement;
    return { id, className, localName, kind: dataset.kind, inDialog: document.activeElement.closest('dialog') !== null };
  });
  await page.locator('body').evaluate((body) => { document.activeElement.blur(); body.tabIndex = -1; body.focus(); });
  const met = [];
  for (let presses = 0; presses < 6 && (await focused()).localName !== 'button' | (await focused()).id === 'pause'; presses += 1) {
    await page.keyboard.press('Tab');
    met.push(await focused());
  }
  check('Tab reaches the skip link, Pause, then the pool', met[0].className === 'skip' && met.some(({ id }) => id === 'pause') && met.at(-1).kind === 'control', met);
  await page.keyboard.press('ArrowRight');
  const second = await focused();
  check('arrows walk the cells', second.kind === 'shared', second);
  await page.keyboard.press('End');
  check('End is the last cell', (await focused()).kind === 'leased', await focused());
  await page.keyboard.press('Enter');
  await page.locator('#details').waitFor({ state: 'visible' });
  check('Enter opens the dialog and takes the focus into it', (await focused()).inDialog, await focused());
  await page.keyboard.press('Escape');
  await page.locator('#details').waitFor({ state: 'hidden' });
  check('Escape brings the focus back to the cell', (await focused()).kind === 'leased', await focused());
  await page.keyboard.press('Tab');
  const behind = await focused();
  check('one Tab leaves the pool', behind.kind === undefined, behind);
}

async function appearance(page) {
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme });
    await accessible(page, `${colorScheme} theme`);
    await screenshot(page, colorScheme);
  }
  const colour = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const dark = await colour();
  await page.emulateMedia({ colorScheme: 'light' });
  check('the themes differ', dark !== (await colour()), dark);
  await page.setViewportSize({ width: 375, height: 812 });
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  check('a phone does not scroll sideways', overflow <= 0, String(overflow));
  await accessible(page, 'phone');
  await screenshot(page, 'phone');
  await page.setViewportSize({ width: 1280, height: 900 });
}

async function pause(page) {
  check('it is paused', (await stage.through.call('PROXY', 'PAUSE')) === 'OK');
  await eventually('the page says that it is paused', async (seen) => {
    const { level, title } = Object.assign(seen, await read(page));
    return level === 'warn' && /^Paused for \d+ s, until PROXY RESUME: /.test(title);
  });
  await stage.through.call('PROXY', 'RESUME');
  await agrees(page, 'the pause is over', ({ title }) => !title.startsWith('Paused'));
}

// The server goes and comes back.
async function outage(page) {
  stage.redis.kill('SIGKILL');
  await stage.redis.ended;
  const away = await eventually('the page says that the server is away', async (seen) => {
    stage.client('asks').ping().catch(() => {});
    const shown = Object.assign(seen, await read(page));
    return shown.title.startsWith('The server is away for') && shown;
  });
  check('an outage is bad, and has its reason', away.level === 'bad' && /refused/i.test(away.reasons), away);
  stage.startServer();
  await eventually('the page says that it is back', async (seen) => {
    const { level, title } = Object.assign(seen, await read(page));
    return level !== 'bad' && !title.startsWith('The server');
  });
  console.log('ok   the page tells of an outage of the server and of its end');
}

// The proxy goes and comes back: the page says so, and goes on by itself.
async function restart(page) {
  stage.proxy.kill('SIGKILL');
  await stage.proxy.ended;
  await eventually('the page says that it hears nothing', async () => (await read(page)).live.startsWith('no news for'));
  await stage.startProxy();
  await eventually('the page goes on', async () => (await read(page)).live === 'live', 20_000);
  console.log('ok   the page survives a restart of the proxy');
}

// In front of a cluster each node has a row, and its cells say to which node they are.
async function cluster() {
  const stage = new Stage(flags.proxy, CAP);
  let names;
  await stage.start(async () => { names = await stage.serveCluster(); });
  const page = stage.context.pages()[0];
  await page.goto(`http://127.0.0.1:${stage.admin}/`);
  const own = `http://127.0.0.1:${stage.admin}/`;
  page.on('console', (message) => ['error', 'warning'].includes(message.type()) && problems.push(message.text()));
  page.on('request', (request) => request.url().startsWith(own) || problems.push(`request of ${request.url()}`));
  await Promise.all(['a', 'b', 'c'].map((key) => stage.through.set(key, 'x')));
  const holder = stage.client('checkout');
  await holder.watch('b');
  const counted = async (node) => Object.values(await stage.listed(node)).reduce((all, count) => all + count, 0);
  await eventually('rows of nodes and their cells are what the nodes list', async (seen) => {
    const listed = await Promise.all(stage.nodes.map(counted));
    const shown = await page.evaluate(() => ({
      rows: [...document.querySelectorAll('#nodes tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent)),
      cells: [...document.querySelectorAll('#cells button')].map((cell) => cell.title),
      free: document.querySelectorAll('#cells .free').length,
    }));
    Object.assign(seen, { listed, shown });
    const total = listed.reduce((all, count) => all + count, 0);
    return listed.every((count) => count > 0) && shown.cells.length === total && shown.free === 3 * CAP - total
      && names.every((name, index) => {
        const row = shown.rows.find(([node]) => node.startsWith(name));
        return row?.[2] === `${listed[index]} / ${CAP}` && shown.cells.filter((title) => title.startsWith(`${name}: `)).length === listed[index];
      });
  });
  check('one node is home, and all slots are theirs', await page.evaluate(() => {
    const rows = [...document.querySelectorAll('#nodes tbody tr')];
    const slots = rows.map((row) => Number(row.cells[1].textContent.replace(',', '')));
    return rows.length === 3 && rows.filter((row) => row.cells[0].textContent.endsWith(' (home)')).length === 1
      && slots.reduce((all, count) => all + count, 0) === 16_384;
  }));
  await page.locator('#cells button[data-kind=leased]').click();
  const text = await page.locator('#details').innerText();
  check('a lease tells its node, and how to end its client', names.some((name) => text.includes(name)) && text.includes('CLIENT KILL ID') && !text.includes('PROXY KILL CONNECTION'), text);
  await accessible(page, 'a cluster');
  await screenshot(page, 'cluster');
  await stage.close();
}

async function main() {
  await stage.start();
  const page = stage.context.pages()[0] ?? (await stage.context.newPage());
  watch(page);
  if (flags.files) {
    await page.route(/\/(|[a-z]+\.(js|css|svg))$/, async (route) => {
      const name = new URL(route.request().url()).pathname.slice(1) || 'page.html';
      await route.fulfill({ response: await route.fetch(), body: readFileSync(join(flags.files, name)) });
    });
  }
  await page.goto(`http://127.0.0.1:${stage.admin}/`);
  if (flags.picture) await restarts();
  const { clients, holders } = await loads(page);
  if (flags.picture) {
    await page.setViewportSize({ width: 1180, height: 980 });
    await sleep(1500);
    await page.screenshot({ path: flags.picture });
  }
  await ending(page);
  await appearance(page);
  await keyboard(page);
  for (const client of [...clients, ...holders]) client.disconnect();
  await agrees(page, 'all are gone', ({ clients: count, level }) => count === 1 && level !== 'bad');
  await pause(page);
  await outage(page);
  check('no console message, no dialog, no request of another host', problems.length === 0, problems);
  await restart(page);
  await stage.close();
  // The browser has said that the proxy was away.
  problems.length = 0;
  await cluster();
  check('nor in front of a cluster', problems.length === 0, problems);
}

main().then(
  () => process.exit(0),
  (error) => {
    console.log(`FAIL ${error.stack}`);
    for (const problem of problems) console.log(`     ${problem}`);
    process.exit(1);
  },
);
