'use strict';
// What all pages draw with. No library, nothing from outside.

const $ = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) key in node ? (node[key] = value) : node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function drawing(name, attributes = {}, ...children) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const number = (value, digits, unit = '') => (value == null ? '–' : value.toFixed(digits) + unit);
const percent = (value) => number(100 * value, 0, '\u00a0%');

/** What ran, a column a step and a row a branch: `SS|S.|..|`, as reports have it.
 *
 * `units`: how many parts a forward has, where some were reused inside of it. `ran(step, branch)`: `S`, `.`, or a
 * character a unit. `where(step, branch)`: what the column says of itself. */
function drawStrip({ strip, name, units = 0, ran = null, where = (step, branch) => `step ${step + 1}, branch ${branch}`, steps = 0 }) {
  const rows = strip.split('|').filter((row) => row);
  const branches = Math.max(1, ...rows.map((row) => row.length));
  const tall = rows.some((row) => row.includes('m')) ? Math.max(12, 2 * units) : 14;
  const columns = Math.max(rows.length, steps, 1);
  const svg = drawing('svg', { viewBox: `0 0 ${columns * 10} ${branches * (tall + 2)}`, preserveAspectRatio: 'none', class: 'plot', role: 'img',
    'aria-label': `${name}: ${strip || 'nothing yet'}` });
  svg.style.height = `${branches * (tall + 2)}px`;
  rows.forEach((row, step) => [...row].forEach((symbol, branch) => {
    const [x, y, text] = [step * 10, branch * (tall + 2), ran ? ran(step, branch) : symbol];
    const computed = [...text].filter((c) => c === 'S').length;
    const what = { S: 'computed', '.': 'reused' }[symbol] ?? (text.length > 1 ? `${computed} of ${text.length} units computed` : 'computed in part');
    const cell = drawing('g', {}, drawing('title', {}, `${where(step, branch)}: ${what}`),
      drawing('rect', { x, y, width: 9, height: tall, class: symbol === 'S' ? 'S' : text === 'm' ? 'm' : 'off' }));
    if (text.length > 1) [...text].forEach((c, unit) => {
      if (c === 'S') cell.append(drawing('rect', { x, y: y + (unit * tall) / text.length, width: 9, height: tall / text.length, class: 'S' }));
    });
    svg.append(cell);
  }));
  for (let step = rows.length; step < steps; step += 1) svg.append(drawing('rect', { x: step * 10, y: tall / 2, width: 9, height: 1, class: 'off' }));
  return svg;
}

/** Draws two videos or pictures over each other. `view` is `wipe`, with the edge at `wipe` percent; `difference`, so many times
 * as bright as `gain` says; or `flicker`, where one of them is seen: the `second` or the first. Of both, the part around `x`, `y`
 * (shares of the picture) that is `zoom` times smaller. */
function blend(canvas, a, b, { view, wipe, gain, second = false, zoom = 1, x = 0.5, y = 0.5 }) {
  const { width, height } = canvas;
  const pen = canvas.getContext('2d');
  const put = (picture) => {
    const [wide, high] = [picture.videoWidth || picture.width, picture.videoHeight || picture.height];
    pen.drawImage(picture, wide * (x - 0.5 / zoom), high * (y - 0.5 / zoom), wide / zoom, high / zoom, 0, 0, width, height);
  };
  pen.globalCompositeOperation = 'source-over';
  pen.imageSmoothingEnabled = zoom === 1;
  put(view === 'flicker' && second ? b : a);
  if (view === 'flicker') return;
  if (view === 'wipe') {
    const edge = (width * wipe) / 100;
    pen.save();
    pen.beginPath();
    pen.rect(edge, 0, width - edge, height);
    pen.clip();
    put(b);
    pen.restore();
  } else {
    pen.globalCompositeOperation = 'difference';
    put(b);
    pen.globalCompositeOperation = 'lighter'; // added to itself: twice as bright, without reading pixels
    for (let times = gain; times > 1; times /= 2) pen.drawImage(canvas, 0, 0);
  }
}
