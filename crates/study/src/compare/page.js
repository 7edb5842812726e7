// One page, one folder of results: draws `data`, plays its videos in step. No library, nothing from outside.

const data = JSON.parse(document.getElementById('data').textContent);
const { fps, frames, methods, metrics, runs, steps } = data;
/** Metrics beside PSNR, which is told in more than one way. */
const others = metrics.filter(({ key }) => key !== 'psnr');

/** A choice of what is shown; the address keeps it. */
const shown = { prompt: 0, seed: data.seeds[0], against: methods.length > 1 ? 1 : 0, view: 'wipe', wipe: 50, gain: 4, zoom: 1, x: 0.5, y: 0.5, sort: 'speedup' };

// ---- building blocks

/** A method's name; it may break after its parts. */
const named = (method) => label(methods[method]).split(/(?<=[:,])/).flatMap((part, i) => (i ? [element('wbr'), part] : [part]));
const label = ({ name }) => (name === 'none' ? 'none (uncached)' : name);
const color = (method) => `var(--m${method % 10})`;
const dashes = (method) => ['', '7 3', '2 3', '9 3 2 3'][Math.floor(method / 10) % 4];

function chip(method) {
  const dot = element('i', { className: 'chip' });
  dot.style.background = color(method);
  return dot;
}

/** The runs of the prompt and seed that are shown, in the order of methods. */
const current = () => runs.filter((run) => run.prompt === shown.prompt && run.seed === shown.seed).sort((a, b) => a.method - b.method);
/** Of the steps that a run has; `none,steps=25` has fewer than the others. */
const stepsOf = (run) => run.strip.split('|').length - 1;
const work = ({ totals, ...run }) => (totals.units_computed / (totals.units_computed + totals.units_reused)) * (stepsOf(run) / steps.length);

// ---- the player: one clock for all videos

const player = { cells: [], frame: 0, playing: false, origin: 0 };
const half = (frame) => (frame + 0.5) / fps; // the middle of a frame: rounding cannot reach its neighbours

function sourceOf(run) {
  if (!data.embedded) return run.video;
  const bytes = Uint8Array.from(atob(data.media[run.video]), (c) => c.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes], { type: 'video/mp4' }));
}

/** Makes the videos of the prompt and seed that are shown. */
function load() {
  for (const { video } of player.cells) {
    video.pause();
    if (data.embedded) URL.revokeObjectURL(video.src);
  }
  player.cells = current().map((run) => {
    const { name } = methods[run.method];
    const video = element('video', { muted: true, playsInline: true, preload: 'auto', width: data.width, height: data.height, ariaLabel: `Video made with ${name}` });
    const cell = { run, video, at: -1 };
    video.addEventListener('loadeddata', () => seek(cell));
    video.addEventListener('seeked', () => { if (!player.playing) { cell.at = player.frame; draw(); } });
    video.addEventListener('error', () => { $('broken').hidden = false; });
    const note = (_, { mediaTime }) => { // which frame is on the screen, as far as the browser says
      cell.at = Math.round(mediaTime * fps);
      draw();
      video.requestVideoFrameCallback(note);
    };
    if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(note);
    video.src = sourceOf(run);
    return cell;
  });
  $('missing').hidden = player.cells.length > 0;
  $('videos').replaceChildren(...player.cells.map(({ run, video }) => {
    const facts = run.compared
      ? `${number(run.speedup, 2, '×')} · ${percent(work(run))} of the work · ${number(run.compared.psnr.mean, 1, ' dB')}`
      : `${number(run.totals.seconds.denoise, 1, ' s')} of denoising`;
    return element('li', {}, element('figure', {}, video, element('figcaption', {},
      element('strong', {}, chip(run.method), ...named(run.method)), facts)));
  }));
  if (player.playing) play();
}

const seek = ({ video }) => { video.currentTime = half(player.frame); };

function play() {
  player.playing = true;
  player.origin = performance.now() - 1000 * half(player.frame);
  for (const cell of player.cells) {
    seek(cell);
    cell.video.play().catch(() => {});
  }
  requestAnimationFrame(tick);
  control();
}

function pause() {
  player.playing = false;
  player.cells.forEach((cell) => cell.video.pause());
  go(player.frame);
}

/** Shows a frame in all videos. */
function go(frame) {
  player.frame = (frame + frames) % frames;
  if (player.playing) return play();
  player.cells.forEach(seek);
  control();
}

/** Follows the clock: a video that is behind or ahead runs a little faster or slower, or jumps. */
function tick(now) {
  if (!player.playing) return;
  const length = frames / fps;
  let time = (now - player.origin) / 1000;
  const again = time >= length;
  if (again) {
    time %= length;
    player.origin = now - 1000 * time;
  }
  for (const { video } of player.cells) {
    const late = time - video.currentTime;
    if (again || Math.abs(late) > 1.5 / fps) {
      if (!video.seeking) video.currentTime = time;
      if (video.paused) video.play().catch(() => {});
    } else {
      video.playbackRate = Math.min(1.25, Math.max(0.8, 1 + late));
    }
  }
  const frame = Math.min(frames - 1, Math.floor(time * fps));
  if (frame !== player.frame) {
    player.frame = frame;
    control();
  }
  requestAnimationFrame(tick);
}

function control() {
  $('play').textContent = player.playing ? 'Pause' : 'Play';
  $('play').setAttribute('aria-pressed', player.playing);
  $('scrub').value = player.frame;
  $('now').textContent = `${player.frame + 1} / ${frames}`;
  $('scrub').setAttribute('aria-valuetext', `frame ${player.frame + 1} of ${frames}`);
  for (const mark of document.querySelectorAll('.marker')) mark.dispatchEvent(new Event('frame'));
}

// ---- the stage: wipe and difference

/** Draws the reference and the chosen method, unless they show different frames at the moment. */
function draw() {
  const canvas = $('canvas');
  const pick = (method) => player.cells.find((cell) => cell.run.method === method);
  const [a, b] = [pick(0), pick(shown.against)];
  if (!a || !b || a.at !== b.at || a.video.readyState < 2 || b.video.readyState < 2) return;
  blend(canvas, a.video, b.video, { ...shown, second: flicker.second });
  canvas.dataset.frame = a.at;
}

/** Shows one video and then the other, twice a second: what differs jumps. */
const flicker = { second: false, timer: 0 };

function keepFlickering() {
  clearInterval(flicker.timer);
  flicker.second = false;
  if (shown.view !== 'flicker') return;
  flicker.timer = setInterval(() => {
    flicker.second = !flicker.second;
    $('which').textContent = flicker.second ? methods[shown.against].name : 'uncached';
    draw();
  }, 500);
}

/** Moves the part that is shown, in shares of the picture. */
function move(x, y) {
  const half = 0.5 / shown.zoom;
  const within = (value) => Math.min(1 - half, Math.max(half, value));
  choose({ x: within(shown.x + x), y: within(shown.y + y) });
}

function stage() {
  const { name, options } = methods[shown.against];
  const wipe = shown.view === 'wipe';
  $('wipe-label').hidden = !wipe;
  $('edge').hidden = !wipe;
  $('gain-label').hidden = shown.view !== 'difference';
  $('edge').style.left = `${shown.wipe}%`;
  $('wipe').value = shown.wipe;
  $('wipe').setAttribute('aria-valuetext', `${shown.wipe} % uncached`);
  $('gain').value = shown.gain;
  $('explain').replaceChildren(...{
    wipe: [`Left of the line: uncached. Right of it: ${name}. Drag the picture or the slider.`],
    difference: ['Black is equal. The difference is that of the files that play here, so it has the traces of their compression too.'],
    flicker: ['One and then the other, in the same place; now: ', element('strong', { id: 'which' }, 'uncached'), '. What differs jumps.'],
  }[shown.view], shown.zoom > 1 ? ` ${wipe ? 'Drag with Shift' : 'Drag'} to move the part that is shown.` : '');
  $('zoom').value = shown.zoom;
  const what = { wipe: 'Wipe between', difference: 'Difference of', flicker: 'Flicker between' }[shown.view];
  $('canvas').setAttribute('aria-label', `${what} the uncached video and ${name}`);
  keepFlickering();
  const run = current().find((run) => run.method === shown.against);
  const facts = run ? [
    ['speed-up', number(run.speedup, 2, '×')], ['work', percent(work(run))],
    ...(run.compared ? [['PSNR', number(run.compared.psnr.mean, 2, ' dB')], ['worst frame', number(run.compared.psnr.worst, 2, ' dB')],
      ...others.filter(({ key }) => run.compared[key]).map(({ key, name, digits, unit }) => [name, number(run.compared[key].mean, digits, unit && ` ${unit}`)]), ['motion kept', number(run.compared.motion_kept, 3)]] : []),
    ...Object.entries(options).filter(([key]) => key !== 'method').map(([key, value]) => [key, typeof value === 'object' ? JSON.stringify(value) : String(value)]),
    ...run.warnings.map((warning) => ['warning', warning]),
  ] : [['', 'This video is not done yet.']];
  $('facts').replaceChildren(...facts.flatMap(([key, value]) => [element('dt', {}, key), element('dd', {}, value)]));
  draw();
}

// ---- the table

const columns = [
  { key: 'name', head: 'method', text: (m) => m.name },
  { key: 'runs', head: 'videos', text: (m) => String(m.runs) },
  { key: 'speedup', head: 'speed-up', text: (m) => number(m.speedup, 2, '×') },
  { key: 'work', head: 'work', text: (m) => percent(m.work) },
  { key: 'computed', head: 'forwards', of: (m) => m.forwards[0], text: ({ forwards: [all, part, none] }) => `${all}${part ? ` + ${part}` : ''} of ${all + part + none}` },
  { key: 'psnr', head: 'PSNR', text: (m) => number(m.psnr, 2) },
  { key: 'psnr_deviation', head: '±', text: (m) => number(m.psnr_deviation, 2) },
  { key: 'psnr_worst', head: 'worst', text: (m) => number(m.psnr_worst, 2) },
  { key: 'psnr_of_video', head: 'whole', text: (m) => number(m.psnr_of_video, 2) },
  ...others.filter(({ key }) => methods.some((m) => m[key] != null)).map(({ key, name, digits }) => ({ key, head: name, text: (m) => number(m[key], digits) })),
  { key: 'motion_kept', head: 'motion', text: (m) => number(m.motion_kept, 3) },
  { key: 'store_bytes', head: 'kept, MB', text: (m) => number(m.store_bytes / 1e6, 1) },
  ...['text', 'denoise', 'decode', 'total'].map((stage) => ({ key: stage, head: `${stage}, s`, of: (m) => m.seconds[stage], text: (m) => number(m.seconds[stage], 2) })),
].filter(({ key }) => key !== 'psnr_deviation' || methods.some((m) => m.psnr_deviation != null)).filter(({ key }) => key !== 'runs' || methods.some((m) => m.runs !== methods[0].runs));

function table() {
  const down = !shown.sort.startsWith('-');
  const key = shown.sort.replace(/^-/, '');
  const by = columns.find((column) => column.key === key) || columns[1];
  const value = (m) => (by.of ? by.of(m) : m[by.key]) ?? -Infinity;
  const order = methods.map((m, i) => [m, i]).sort(([a], [b]) => (value(a) < value(b) ? 1 : value(a) > value(b) ? -1 : 0) * (down ? 1 : -1));
  const head = columns.map((column) => {
    const button = element('button', { type: 'button', onclick: () => { choose({ sort: column === by && down ? `-${column.key}` : column.key }); } }, column.head);
    const th = element('th', { scope: 'col' }, button);
    if (column === by) th.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    return th;
  });
  $('table').tHead.replaceChildren(element('tr', {}, ...head));
  $('table').tBodies[0].replaceChildren(...order.map(([m, i]) => element('tr', {}, ...columns.map((column, c) =>
    c === 0 ? element('th', { scope: 'row' }, chip(i), ...named(i)) : element('td', {}, column.text(m))))));
}

// ---- strips

/** What ran of a step and branch: `S`, `.`, or a character a unit. */
const ran = (run, step, branch) => run.blocks?.steps[step]?.[branch] ?? run.strip.split('|')[step]?.[branch] ?? '.';

function strip(run) {
  const of = (branch) => run.blocks?.branches[branch] ?? `branch ${branch}`;
  return drawStrip({
    strip: run.strip,
    name: methods[run.method].name,
    units: run.blocks?.units.length,
    ran: (step, branch) => ran(run, step, branch),
    where: (step, branch) => `step ${step + 1}${stepsOf(run) === steps.length ? `, timestep ${number(steps[step].timestep, 0)}` : ''}, ${of(branch)}`,
  });
}

function strips() {
  $('strips').replaceChildren(...current().map((run) => element('div', { className: 'strip' },
    element('h3', {}, chip(run.method), ...named(run.method), element('small', {}, `${percent(work(run))} of the work`)), strip(run))));
  const branches = current()[0]?.blocks?.branches ?? [];
  $('branches').textContent = branches.length > 1 ? `rows of a method: ${branches.join(', ')}` : '';
  const width = Math.max(...methods.map((m) => m.name.length));
  $('text').textContent = current().map((run) => `${methods[run.method].name.padEnd(width)}  ${run.strip}`).join('\n');
}

/** Compute ratio and skip frequency of every step, over all runs of a method: one stands up, the other hangs down. */
function overSteps(method, index) {
  const mine = runs.filter((run) => run.method === index).map((run) => ({ run, rows: run.strip.split('|').slice(0, -1) }));
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  const share = (text) => [...text].filter((c) => c === 'S').length / text.length;
  const count = Math.min(...mine.map(({ rows }) => rows.length)); // `none,steps=25` has fewer
  const over = (value) => Array.from({ length: count }, (_, step) => mean(mine.map(({ run, rows }) => value(run, [...(rows[step] ?? '')], step))));
  const ratio = over((run, row, step) => mean(row.map((_, branch) => share(ran(run, step, branch)))));
  const skipped = over((_, row) => (row.every((c) => c === '.') ? 1 : 0));
  const [left, top, width, height] = [54, 8, 320, 64];
  const x = (step) => left + (step * width) / count;
  const zero = top + height;
  const bar = (step, from, to, kind) => drawing('rect', { class: kind, x: x(step) + 0.4, y: from, width: Math.max(width / count - 0.8, 0.5), height: to - from });
  const svg = drawing('svg', { viewBox: `0 0 ${left + width + 8} ${zero + height + 28}`, class: 'plot', role: 'img',
    'aria-label': `${method.name}: compute ratio by step ${ratio.map((v) => v.toFixed(2)).join(' ')}; skip frequency ${skipped.map((v) => v.toFixed(2)).join(' ')}` });
  for (const [y, text] of [[top, '100 %'], [zero, '0'], [zero + height, '100 %']]) {
    svg.append(drawing('line', { class: 'grid', x1: left, x2: left + width, y1: y, y2: y }),
      drawing('text', { class: 'soft', x: left - 6, y: y + 4, 'text-anchor': 'end' }, text));
  }
  const stepOf = (step) => `step ${step + 1}${count === steps.length ? `, timestep ${number(steps[step].timestep, 0)}` : ''}`;
  ratio.forEach((_, step) => svg.append(drawing('g', {},
    drawing('title', {}, `${stepOf(step)}: ${percent(ratio[step])} computed, ${percent(skipped[step])} of the videos skip it`),
    bar(step, zero - ratio[step] * height, zero, 'S'), bar(step, zero, zero + skipped[step] * height, 'skips'))));
  ticks(svg, count, (step) => x(step + 0.5), zero + height + 20, 'step');
  return element('li', { className: 'card' }, element('h3', {}, chip(index), ...named(index)), svg);
}

/** Names the first, the middle and the last of so many. */
function ticks(svg, count, x, y, noun) {
  for (const i of new Set([0, Math.floor((count - 1) / 2), count - 1])) {
    const anchor = i === 0 ? 'start' : i === count - 1 ? 'end' : 'middle';
    svg.append(drawing('text', { class: 'soft', x: x(i), y, 'text-anchor': anchor }, `${noun} ${i + 1}`));
  }
}

// ---- per-frame curves

function curves() {
  const measures = metrics.map(({ key, name, unit, digits }) => [key, unit ? `${name}, ${unit}` : name, digits]);
  const mine = current().filter((run) => run.compared);
  const charts = measures.filter(([key]) => mine.some((run) => run.compared[key])).map(([key, title, digits]) => {
    const series = mine.filter((run) => run.compared[key]).map((run) => ({ method: run.method, values: run.compared[key].frames }));
    return curve(title, digits, series);
  });
  $('curves').replaceChildren(...(charts.length ? charts : [element('p', {}, 'Nothing but the uncached video is there yet.')]));
  $('series').replaceChildren(...mine.map((run) => element('span', {}, chip(run.method), methods[run.method].name)));
}

function curve(title, digits, series) {
  const [left, top, width, height] = [62, 8, 500, 190];
  const all = series.flatMap(({ values }) => values);
  const span = Math.max(...all) - Math.min(...all) || 1;
  const step = [1, 2, 5, 10].map((n) => n * 10 ** Math.floor(Math.log10(span / 5))).find((n) => n >= span / 5.5); // round numbers
  const [first, last] = [Math.floor(Math.min(...all) / step), Math.max(Math.ceil(Math.max(...all) / step), Math.floor(Math.min(...all) / step) + 1)];
  const [low, high] = [first * step, last * step];
  const places = Math.max(0, -Math.floor(Math.log10(step)));
  const x = (frame) => left + (frames > 1 ? (frame / (frames - 1)) * width : width / 2);
  const y = (value) => top + (1 - (value - low) / (high - low)) * height;
  const svg = drawing('svg', { viewBox: `0 0 ${left + width + 12} ${height + 40}`, class: 'plot', role: 'img',
    'aria-label': `${title} by frame. ${series.map(({ method, values }) => `${methods[method].name}: ${values.map((v) => v.toFixed(digits)).join(' ')}`).join('; ')}` });
  for (let i = first; i <= last; i++) {
    const value = i * step;
    svg.append(drawing('line', { class: 'grid', x1: left, x2: left + width, y1: y(value), y2: y(value) }),
      drawing('text', { class: 'soft', x: left - 6, y: y(value) + 4, 'text-anchor': 'end' }, value.toFixed(places)));
  }
  ticks(svg, frames, x, top + height + 20, 'frame');
  for (const { method, values } of series) {
    svg.append(drawing('path', { class: 'curve', stroke: color(method), 'stroke-dasharray': dashes(method),
      d: values.map((value, frame) => `${frame ? 'L' : 'M'}${x(frame).toFixed(1)} ${y(value).toFixed(1)}`).join('') }));
  }
  const mark = drawing('line', { class: 'marker', y1: top, y2: top + height });
  const readout = element('p', { className: 'readout' });
  const at = (frame) => {
    mark.setAttribute('x1', x(frame));
    mark.setAttribute('x2', x(frame));
    readout.textContent = `frame ${frame + 1}: ` + series.map(({ method, values }) => `${methods[method].name} ${number(values[frame], digits)}`).join(', ');
  };
  mark.addEventListener('frame', () => at(player.frame));
  at(player.frame);
  svg.append(mark);
  const under = (event) => {
    const box = svg.getBoundingClientRect();
    const part = (((event.clientX - box.left) / box.width) * (left + width + 12) - left) / width;
    return Math.min(frames - 1, Math.max(0, Math.round(part * (frames - 1))));
  };
  svg.addEventListener('pointermove', (event) => at(under(event)));
  svg.addEventListener('pointerleave', () => at(player.frame));
  svg.addEventListener('click', (event) => { pause(); go(under(event)); });
  return element('div', { className: 'card' }, element('h3', {}, title), svg, readout);
}

// ---- settings

function settings() {
  const list = (title, values) => element('div', { className: 'card' }, element('h3', {}, title), element('dl', { className: 'facts' },
    ...Object.entries(values).flatMap(([key, value]) => [element('dt', {}, key.replaceAll('_', ' ')), element('dd', {}, Array.isArray(value) ? value.join(', ') : value === '' ? '–' : String(value))])));
  const made = data.calls.map(({ command, program, system, began }) =>
    list('Made by', { command, began: new Date(1000 * began).toISOString().replace('T', ' ').replace('.000Z', ' UTC'), program, system }));
  $('settings').replaceChildren(...made, list('Settings', data.settings), list('Machine', data.machine));
}

// ---- files to take away

function save(name, blob) {
  const link = element('a', { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const png = (canvas, name) => canvas.toBlob((blob) => save(name, blob), 'image/png');

/** A plot as pixels: twice its size, for print. */
async function rastered(name) {
  const picture = new Image();
  const [, width, height] = data.exports[name].match(/viewBox='0 0 ([\d.]+) ([\d.]+)'/);
  const sized = data.exports[name].replace('<svg ', `<svg width='${2 * width}' height='${2 * height}' `);
  picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(sized)}`;
  await picture.decode();
  const canvas = element('canvas', { width: 2 * width, height: 2 * height });
  canvas.getContext('2d').drawImage(picture, 0, 0);
  png(canvas, name.replace('.svg', '.png'));
}

/** The frame that is shown, of all methods, in a row with their names. */
function savedFrames() {
  const enlarged = Math.max(1, Math.round(256 / data.width));
  const [width, height, gap, line] = [data.width * enlarged, data.height * enlarged, 12, 26];
  const canvas = element('canvas', { width: player.cells.length * (width + gap) - gap, height: height + line });
  const pen = canvas.getContext('2d');
  Object.assign(pen, { fillStyle: '#fff', font: '14px system-ui, sans-serif', imageSmoothingEnabled: data.width > 128 });
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = '#16191f';
  player.cells.forEach(({ run, video }, i) => {
    pen.drawImage(video, i * (width + gap), 0, width, height);
    pen.fillText(methods[run.method].name, i * (width + gap), height + 18, width);
  });
  png(canvas, `frame-${player.frame + 1}.png`);
}

function downloads() {
  const types = { csv: 'text/csv', tex: 'application/x-tex', svg: 'image/svg+xml' };
  for (const place of document.querySelectorAll('[data-files]')) {
    place.append('Download: ', ...place.dataset.files.split(' ').flatMap((name) => {
      const ending = name.split('.').pop();
      const whole = element('button', { type: 'button', onclick: () => save(name, new Blob([data.exports[name]], { type: types[ending] })) }, name);
      const pixels = element('button', { type: 'button', onclick: () => rastered(name) }, name.replace('.svg', '.png'));
      return ending === 'svg' ? [whole, ' ', pixels, ' '] : [whole, ' '];
    }));
  }
  $('save-frames').addEventListener('click', savedFrames);
  $('save-frames').hidden = !data.embedded; // of files beside the page the browser tells no pixels
}

// ---- choices

function choose(changes) {
  const again = ['prompt', 'seed'].some((key) => key in changes && changes[key] !== shown[key]);
  Object.assign(shown, changes);
  if (again) {
    load();
    strips();
    curves();
  }
  stage();
  if ('sort' in changes) {
    const column = [...$('table').tHead.querySelectorAll('button')].indexOf(document.activeElement);
    table();
    $('table').tHead.querySelectorAll('button')[column]?.focus();
  }
  const kept = { prompt: shown.prompt + 1, seed: shown.seed, method: methods[shown.against].name, view: shown.view, sort: shown.sort };
  history.replaceState(null, '', `#${new URLSearchParams(kept)}`);
}

/** The choice that the address asks for, as far as there is such a thing. */
function restore() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const prompt = Number(asked.get('prompt')) - 1;
  if (prompt in data.prompts) shown.prompt = prompt;
  if (data.seeds.map(String).includes(asked.get('seed'))) shown.seed = data.seeds.find((seed) => String(seed) === asked.get('seed'));
  const against = methods.findIndex((m) => m.name === asked.get('method'));
  if (against >= 0) shown.against = against;
  if (['wipe', 'difference', 'flicker'].includes(asked.get('view'))) shown.view = asked.get('view');
  if (columns.some(({ key }) => key === asked.get('sort')?.replace(/^-/, ''))) shown.sort = asked.get('sort');
}

/** The answer in a sentence. Work, other than time, does not depend on the machine. */
function verdict() {
  const measured = methods.filter((m) => m.psnr != null);
  if (!measured.length) return '';
  const most = (value) => measured.reduce((a, b) => (value(b) > value(a) ? b : a));
  const says = (m) => `${m.name}, ${m.psnr >= 100 ? 'equal to the uncached video' : number(m.psnr, 1, ' dB')} with ${percent(m.work)} of the work, ${number(m.speedup, 2)} times the speed`;
  const [closest, least] = [most((m) => m.psnr), most((m) => -m.work)];
  return closest === least ? `Closest, with the least work: ${says(closest)}.` : `Closest: ${says(closest)}. Least work: ${says(least)}.`;
}

function begin() {
  restore();
  const options = (id, values, chosen, change) => {
    $(id).replaceChildren(...values.map(([value, text]) => element('option', { value, selected: value === chosen }, text)));
    $(id).addEventListener('change', () => choose(change($(id).selectedIndex)));
  };
  options('prompt', data.prompts.map((text, i) => [i, text]), shown.prompt, (i) => ({ prompt: i }));
  options('seed', data.seeds.map((seed) => [seed, String(seed)]), shown.seed, (i) => ({ seed: data.seeds[i] }));
  const others = methods.map((m, i) => [i, m.name]).filter(([i]) => i > 0 || methods.length === 1);
  options('against', others, shown.against, (i) => ({ against: others[i][0] }));
  for (const radio of document.getElementsByName('view')) {
    radio.checked = radio.value === shown.view;
    radio.addEventListener('change', () => choose({ view: radio.value }));
  }
  $('wipe').addEventListener('input', () => choose({ wipe: Number($('wipe').value) }));
  $('gain').addEventListener('change', () => choose({ gain: Number($('gain').value) }));
  $('zoom').addEventListener('change', () => { shown.zoom = Number($('zoom').value); move(0, 0); });
  const drag = (event) => {
    if (event.buttons !== 1) return;
    const box = $('frame').getBoundingClientRect();
    if (shown.view !== 'wipe' || (event.shiftKey && shown.zoom > 1)) {
      if (event.type === 'pointermove') move(-event.movementX / box.width / shown.zoom, -event.movementY / box.height / shown.zoom);
      return;
    }
    choose({ wipe: Math.round(100 * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width))) });
  };
  $('frame').addEventListener('pointerdown', drag);
  $('frame').addEventListener('pointermove', drag);
  $('frame').addEventListener('keydown', (event) => {
    const to = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!to || shown.zoom === 1) return;
    event.preventDefault();
    event.stopPropagation();
    move(...to.map((step) => step / 8 / shown.zoom));
  });

  $('scrub').max = frames - 1;
  $('scrub').addEventListener('input', () => { const frame = Number($('scrub').value); pause(); go(frame); });
  $('play').addEventListener('click', () => (player.playing ? pause() : play()));
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest('select, button, summary, input')) return;
    const does = { ' ': () => (player.playing ? pause() : play()), ArrowRight: () => { pause(); go(player.frame + 1); }, ArrowLeft: () => { pause(); go(player.frame - 1); } }[event.key];
    if (does) { event.preventDefault(); does(); }
  });

  Object.assign($('canvas'), { width: data.width, height: data.height });
  document.body.classList.toggle('tiny', data.width <= 128);
  $('videos').classList.toggle('large', data.width > 256);
  const plural = (count, noun) => `${count} ${noun}${count === 1 ? '' : 's'}`;
  const { model, steps: count } = data.settings;
  $('lead').textContent = `${plural(methods.length - 1, 'method')} on ${plural(data.prompts.length, 'prompt')} with ${plural(data.seeds.length, 'seed')}, each against the uncached video of the same seed. Model ${model}: ${plural(count, 'step')}, ${plural(frames, 'frame')} of ${data.width}×${data.height}.` + (data.embedded ? '' : ' The videos are files beside this page: keep them together.');
  $('verdict').textContent = verdict();
  $('caption').textContent = `Means over ${plural(methods[0].runs, 'video')}; every video was made once, on this machine. Press a heading to sort.`;
  $('warnings').replaceChildren(...data.warnings.map((text) => element('li', {}, text[0].toUpperCase() + text.slice(1) + '.')));
  $('work').replaceChildren(...methods.map((m, i) => [m, i]).filter(([, i]) => i > 0).map(([m, i]) => overSteps(m, i)));
  load();
  stage();
  table();
  strips();
  curves();
  settings();
  downloads();
  control();
  if (!matchMedia('(prefers-reduced-motion: reduce)').matches) play();
}

begin();
