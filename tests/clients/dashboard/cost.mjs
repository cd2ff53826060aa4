// What viewers of the dashboard cost: the proxy's CPU time with 0, 1 and 50 of them, in percent of a core.
//
//   node dashboard/cost.mjs --proxy PATH_OF_REDBOUNCER [--seconds 20] [--clients 100,2000]
//
// The clients are idle, so that what is measured is the page alone. Exits 1 when 50 viewers cost more than 5 % of a core.

import { readFileSync } from 'node:fs';
import { get } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { eventually, Stage } from './stage.mjs';

const MOST_PERCENT = 5;
const TICKS = 100; // a second, in /proc/PID/stat

const { values: flags } = parseArgs({
  options: { proxy: { type: 'string' }, seconds: { type: 'string', default: '20' }, clients: { type: 'string', default: '100,2000' } },
});
if (!flags.proxy) {
  console.error('usage: node dashboard/cost.mjs --proxy PATH_OF_REDBOUNCER [--seconds 20] [--clients 100,2000]');
  process.exit(64);
}
const seconds = Number(flags.seconds);

// One that reads all it is sent.
function viewer(admin) {
  const seen = { pictures: 0, bytes: 0 };
  seen.request = get({ port: admin, host: '127.0.0.1', path: '/events', agent: false }, (answer) => {
    answer.on('data', (chunk) => {
      seen.bytes += chunk.length;
      seen.pictures += chunk.includes('event: picture') ? 1 : 0;
    });
    answer.on('error', () => {});
  });
  seen.request.on('error', () => {});
  return seen;
}

function cpuSeconds(pid) {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1].split(' ');
  return (Number(fields[11]) + Number(fields[12])) / TICKS;
}

async function measure(stage, count) {
  const viewers = Array.from({ length: count }, () => viewer(stage.admin));
  await eventually('every viewer has a picture', () => viewers.every(({ pictures }) => pictures > 0));
  const before = [cpuSeconds(stage.proxy.pid), viewers.map(({ pictures }) => pictures), viewers.map(({ bytes }) => bytes)];
  await sleep(seconds * 1000);
  const percent = ((cpuSeconds(stage.proxy.pid) - before[0]) / seconds) * 100;
  const rate = count === 0 ? 0 : viewers.reduce((all, { pictures }, index) => all + pictures - before[1][index], 0) / count / seconds;
  const bytes = count === 0 ? 0 : (viewers[0].bytes - before[2][0]) / Math.max(1, viewers[0].pictures - before[1][0]);
  for (const { request } of viewers) request.destroy();
  return { percent, rate, bytes };
}

async function main() {
  let worst = 0;
  console.log('clients  viewers  CPU of a core  pictures a second  bytes of a picture');
  for (const clients of flags.clients.split(',').map(Number)) {
    const stage = new Stage(flags.proxy, 8);
    await stage.serve();
    const idle = Array.from({ length: clients }, (_, index) => stage.client(`client-${index % 20}`));
    await Promise.all(idle.map((client) => client.ping()));
    for (const viewers of [0, 1, 50]) {
      await sleep(2000);
      const { percent, rate, bytes } = await measure(stage, viewers);
      worst = Math.max(worst, percent);
      console.log(`${String(clients).padStart(7)} ${String(viewers).padStart(8)} ${percent.toFixed(2).padStart(12)} % ${rate.toFixed(2).padStart(18)} ${bytes.toFixed(0).padStart(19)}`);
    }
    await stage.close();
  }
  return worst <= MOST_PERCENT ? 0 : 1;
}

main().then(
  (code) => process.exit(code),
  (error) => {
    console.error(error.stack);
    process.exit(1);
  },
);
