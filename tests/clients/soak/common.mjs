// What the Node programs of the soak share: `ready`, then a line of JSON every 0.2 s whose numbers are totals, until a line on
// stdin says that it is over.

import { setTimeout as sleep } from 'node:timers/promises';

export { sleep };
const url = new URL(process.env.REDIS_URL);
export const address = { host: url.hostname, port: Number(url.port) };
export const totals = { ok: 0, errors: 0, mismatches: 0 };
export const life = { stopped: false };
process.stdin.once('data', () => (life.stopped = true));

const texts = new Set();

// An error reply, or a connection that was lost; each text is shown once.
export function failed(error) {
  totals.errors += 1;
  const text = String(error.message || error.code || error).slice(0, 200);
  if (!texts.has(text) && texts.size < 100) console.error(text);
  texts.add(text);
}

// Something came that is not what was asked for.
export function wrong(what, got) {
  totals.mismatches += 1;
  console.error(`MISMATCH ${what}: ${String(got).slice(0, 200)}`);
}

export function expect(what, got, wanted) {
  if (got === wanted) totals.ok += 1;
  else wrong(`${what}, wanted ${wanted}`, got);
}

export function ready() {
  console.log('ready');
  const tell = () => console.log(JSON.stringify(totals));
  tell();
  setInterval(tell, 200);
  return tell;
}

// Calls `step(number)` again and again until it is over; what fails is counted.
export async function repeat(pause, step) {
  for (let number = 0; !life.stopped; number += 1) {
    try {
      await step(number);
    } catch (error) {
      failed(error);
    }
    await sleep(pause);
  }
}
