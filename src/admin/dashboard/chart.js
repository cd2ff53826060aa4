// The last 15 minutes as two curves with the same seconds: clients above, connections to the server and the cap below.

const SECONDS = 900;
const LEAST_SECONDS = 60; // of a process that has just begun
const LEFT = 44, RIGHT = 8, TOP = 20, GAP = 30, BOTTOM = 20;

function make(name, attributes, text) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// The next round number, so that the axis does not move with every client.
function ceiling(most) {
  const unit = 10 ** Math.floor(Math.log10(Math.max(most, 1)));
  return [1, 2, 5, 10].map((times) => times * unit).find((value) => value >= most && value >= 2) ?? 2;
}

// A step curve. Where seconds are missing (the process was stopped) it is broken.
function path(samples, column, x, y, floor) {
  let line = '', start = null, last = null;
  const end = () => {
    if (floor !== undefined && last !== null) line += `V${floor}H${start}Z`;
  };
  for (const sample of samples) {
    const [second, value] = [sample[0], sample[column]];
    if (last === null || second - last > 5) {
      end();
      start = x(second);
      line += `M${start} ${y(value)}`;
    } else {
      line += `H${x(second)}V${y(value)}`;
    }
    last = second;
  }
  end();
  return line;
}

export class Chart {
  #svg;
  #summary;
  #samples = [];
  #cap = 0;
  #at = null;

  constructor(svg, summary) {
    this.#svg = svg;
    this.#summary = summary;
    new ResizeObserver(() => this.#draw()).observe(svg);
    svg.addEventListener('pointermove', (event) => this.#point(event.offsetX));
    svg.addEventListener('pointerleave', () => this.#point(null));
  }

  reset() {
    this.#samples = [];
  }

  // Rows of second, clients, connections, waiting.
  add(samples) {
    const last = this.#samples.at(-1)?.[0] ?? -1;
    this.#samples.push(...samples.filter(([second]) => second > last));
    const oldest = (this.#samples.at(-1)?.[0] ?? 0) - SECONDS;
    this.#samples = this.#samples.filter(([second]) => second > oldest);
  }

  show(cap) {
    this.#cap = cap;
    this.#draw();
  }

  #point(offset) {
    this.#at = offset;
    this.#draw();
  }

  #draw() {
    const { width, height } = this.#svg.getBoundingClientRect();
    const samples = this.#samples;
    if (samples.length === 0 || width < 100) return;
    const now = samples.at(-1)[0];
    const span = Math.max(LEAST_SECONDS, Math.min(SECONDS, now - samples[0][0]));
    const most = (column) => Math.max(...samples.map((sample) => sample[column]));
    const x = (second) => +(LEFT + (width - LEFT - RIGHT) * (1 - (now - second) / span)).toFixed(1);
    const half = (height - TOP - GAP - BOTTOM) / 2;
    const panels = [
      { top: TOP, most: ceiling(most(1)), title: 'clients' },
      { top: TOP + half + GAP, most: ceiling(Math.max(most(2), most(3), this.#cap)), title: 'connections to the server' },
    ];
    const parts = [];
    for (const panel of panels) {
      const bottom = panel.top + half;
      panel.y = (value) => +(bottom - (half * value) / panel.most).toFixed(1);
      for (const value of [0, panel.most / 2, panel.most]) {
        parts.push(make('path', { class: 'grid', d: `M${LEFT} ${panel.y(value)}H${width - RIGHT}` }));
        if (Number.isInteger(value)) parts.push(make('text', { x: LEFT - 6, y: panel.y(value) + 4, 'text-anchor': 'end' }, value));
      }
      parts.push(make('text', { class: 'title', x: LEFT, y: panel.top - 6 }, panel.title));
    }
    const [above, below] = panels;
    parts.push(make('path', { class: 'clients', d: path(samples, 1, x, above.y, above.y(0)) }));
    if (most(3) > 0) parts.push(make('path', { class: 'waiting', d: path(samples, 3, x, below.y, below.y(0)) }));
    parts.push(make('path', { class: 'cap', d: `M${LEFT} ${below.y(this.#cap)}H${width - RIGHT}` }));
    parts.push(make('path', { class: 'upstream', d: path(samples, 2, x, below.y) }));
    const step = [1, 2, 5].find((minutes) => minutes * 60 * 4 > span) ?? 5;
    for (let minutes = 0; minutes * 60 <= span; minutes += step) {
      const anchor = minutes === 0 ? 'end' : x(now - minutes * 60) < LEFT + 30 ? 'start' : 'middle';
      const text = minutes === 0 ? 'now' : `${minutes} min ago`;
      parts.push(make('text', { x: x(now - minutes * 60), y: height - 4, 'text-anchor': anchor }, text));
    }
    const shown = this.#nearest(now, span, width);
    if (this.#at !== null && shown) parts.push(make('path', { class: 'cursor', d: `M${x(shown[0])} ${TOP}V${height - BOTTOM}` }));
    this.#svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
    this.#svg.replaceChildren(...parts);
    const legend = `dashed: the cap of ${this.#cap}${most(3) > 0 ? '; red: waiting for one' : ''}`;
    const [second, clients, upstream, waiting] = shown;
    const when = second === now ? 'Now' : `${Math.floor((now - second) / 60)} min ${(now - second) % 60} s ago`;
    this.#summary.textContent =
      `${when}: ${clients} clients, ${upstream} connections, ${waiting} waiting. ` +
      `At most ${most(1)} clients, ${most(2)} connections, ${most(3)} waiting. (${legend})`;
  }

  // The sample under the pointer, or the newest.
  #nearest(now, span, width) {
    if (this.#at === null) return this.#samples.at(-1);
    const second = now - span * (1 - (this.#at - LEFT) / (width - LEFT - RIGHT));
    const distance = (sample) => Math.abs(sample[0] - second);
    return this.#samples.reduce((best, sample) => (distance(sample) < distance(best) ? sample : best));
  }
}
