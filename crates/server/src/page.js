// The page of a server: makes videos, follows those that are made, and shows those that are done. All state is the
// server's, so a reload, another tab and another device show the same.

/** Videos on a page of the gallery. */
const SHOWN = 24;
/** Milliseconds until a server that does not answer is asked again. */
const AGAIN = 2000;
/** Milliseconds without a change until an estimate is asked for. */
const SETTLED = 500;
/** Frames that closeness is looked at in, at most. */
const FRAMES = 32;
/** What the slider stands for: text, and the field `target`. */
const SPEEDS = [["the model's own", ''], ['1.5 times', 'speedup=1.5'], ['twice', 'speedup=2'], ['2.5 times', 'speedup=2.5'], ['3 times', 'speedup=3'], ['4 times', 'speedup=4']];

const state = { key: sessionStorage.getItem('key') ?? '', models: [], following: new Map(), picture: null, blank: null, pages: [''], chosen: [], gone: false };

// ---- asking the server

/** What the server says against a request. */
class Refused extends Error {
  constructor({ message, param }, status) {
    super(message);
    Object.assign(this, { param, status });
  }
}

const pause = (milliseconds) => new Promise((resolve) => { setTimeout(resolve, milliseconds); });
const header = () => (state.key ? { Authorization: `Bearer ${state.key}` } : {});

/** Asks until the server answers: it may be starting again. A key that is missing or wrong is asked for. */
async function ask(path, { method = 'GET', body, headers = {}, signal } = {}) {
  for (;;) {
    let answer;
    try {
      answer = await fetch(path, { method, body, headers: { ...header(), ...headers }, signal, cache: 'no-store' });
    } catch (error) {
      if (error.name === 'AbortError') throw error;
      away(true);
      if (method !== 'GET') throw new Error('The server does not answer; nothing was sent. Try again.');
      await pause(AGAIN);
      continue;
    }
    away(false);
    if (answer.status === 401) {
      await askForKey();
      continue;
    }
    if (answer.status === 503 && method === 'GET') {
      await pause(AGAIN);
      continue;
    }
    if (!answer.ok) {
      const said = await answer.json().catch(() => ({}));
      throw new Refused(said.error ?? { message: `${answer.status} ${answer.statusText}` }, answer.status);
    }
    return answer;
  }
}

const json = async (path, options) => (await ask(path, options)).json();

function away(gone) {
  if (gone === state.gone) return;
  state.gone = gone;
  $('banner').hidden = !gone;
  $('banner').textContent = gone ? 'The server does not answer. This page tries again until it does; what was sent is kept there.' : '';
}

/** One dialog, however many wait for the key. */
let keyAsked = null;
function askForKey() {
  keyAsked ??= new Promise((resolve) => {
    $('key-dialog').showModal();
    $('key-dialog').addEventListener('close', () => {
      state.key = $('key').value.trim();
      sessionStorage.setItem('key', state.key);
      keyAsked = null;
      resolve();
    }, { once: true });
  });
  return keyAsked;
}

/** Says something to those who do not see it. */
function say(text) {
  $('said').textContent = text;
}

// ---- words

function about(seconds) {
  if (seconds == null) return '';
  if (seconds < 90) return `about ${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 5400) return `about ${Math.round(seconds / 60)} min`;
  return `about ${number(seconds / 3600, 1)} h`;
}

const PHASES = { queued: 'waiting', loading: 'reading the model', text: 'reading the prompt', picture: 'looking at the picture', load: 'reading the model', denoise: 'computing steps', decode: 'decoding', write: 'writing' };

function phase({ status, navicache: now }) {
  if (status !== 'queued') return PHASES[now.phase] ?? now.phase;
  const place = now.queue_position ? `, place ${now.queue_position}` : '';
  return `waiting${place}${now.seconds_ahead ? `, ${about(now.seconds_ahead)} ahead` : ''}`;
}

// ---- a new video

const FIELDS = ['model', 'size', 'seconds', 'seed', 'negative_prompt', 'steps', 'guidance', 'shift', 'fps', 'solver', 'cache'];

/** The fields of a job as a form. */
function form(changes = {}) {
  const sent = new FormData();
  sent.append('prompt', $('prompt').value);
  const values = Object.fromEntries(FIELDS.map((field) => [field, $(field).value.trim()]));
  values.target = SPEEDS[$('speed').value][1];
  for (const [field, value] of Object.entries({ ...values, ...changes })) if (value !== '') sent.append(field, value);
  if (state.picture) sent.append('input_reference', state.picture, state.picture.name || 'picture');
  return sent;
}

async function send(event) {
  event.preventDefault();
  $('wrong').hidden = true;
  $('send').disabled = true;
  try {
    const other = $('against').value.trim();
    // Two that are compared begin with the same noise.
    const seed = other && !$('seed').value ? { seed: String(Math.floor(Math.random() * 2 ** 32)) } : {};
    const forms = other ? [form(seed), form({ ...seed, cache: other, target: '' })] : [form()];
    for (const body of forms) {
      const video = await json('/v1/videos', { method: 'POST', body, headers: { 'Idempotency-Key': crypto.randomUUID?.() ?? String(Math.random()) } });
      for (const warning of video.navicache.warnings) wrong(warning);
      follow(video);
    }
    say('The video is in the queue.');
  } catch (error) {
    wrong(error.message);
    $(error.param ?? '')?.focus();
  } finally {
    $('send').disabled = false;
  }
}

/** Says what the video will take, once the form is left alone for a moment. */
let settling = 0;
function estimate() {
  clearTimeout(settling);
  settling = setTimeout(async () => {
    const asked = settling;
    const body = form();
    const standIn = await state.blank;
    if (standIn) body.set('input_reference', standIn, 'blank.png');
    if (!body.get('prompt').trim()) body.set('prompt', $('prompt').placeholder);
    const text = await json('/v1/estimate', { method: 'POST', body }).then(taken, (error) => error.message);
    if (asked === settling) $('estimate').textContent = text;
  }, SETTLED);
}

function taken({ device_seconds: seconds, seconds_ahead: ahead, queue_length: waiting, size, frames, steps }) {
  const time = seconds == null ? 'how long is known after the first video of this model' : `${about(seconds)} to make`;
  const before = waiting ? `, ${waiting} before it${ahead ? ` (${about(ahead)})` : ''}` : '';
  return `${size}, ${frames} frames, ${steps} steps: ${time}${before}.`;
}

function wrong(text) {
  $('wrong').textContent = text;
  $('wrong').hidden = false;
}

function model() {
  const chosen = state.models.find(({ id }) => id === $('model').value)?.navicache;
  if (!chosen) return;
  const { width, height, frames, fps, steps, guidance } = chosen.defaults;
  Object.assign($('size'), { placeholder: `${width}x${height}` });
  Object.assign($('seconds'), { placeholder: number(frames / fps, 2) });
  Object.assign($('steps'), { placeholder: steps, max: chosen.limits.max_steps });
  Object.assign($('guidance'), { placeholder: guidance });
  Object.assign($('fps'), { placeholder: fps });
  const example = chosen.defaults.trained?.example;
  $('prompt').placeholder = example ?? 'Two cats boxing on a stage';
  $('methods').replaceChildren(...chosen.cache_methods.map((name) => element('option', { value: name })));
}

/** A blank picture of the same size, a few kilobytes: all that an estimate has to know. None where the browser cannot
 * tell the size. */
async function blank(file) {
  try {
    const { width, height } = await createImageBitmap(file);
    const canvas = element('canvas', { width, height });
    canvas.getContext('2d');
    return await new Promise((done) => { canvas.toBlob(done, 'image/png'); });
  } catch {
    return null;
  }
}

function picture(file) {
  state.picture = file ?? null;
  state.blank = file ? blank(file) : null;
  $('picture-name').textContent = file ? file.name || 'a picture' : 'or drop or paste one';
  $('picture-off').hidden = !file;
  estimate();
}

// ---- what is being made

/** Follows a job until it is over. */
function follow(video) {
  if (state.following.has(video.id)) return;
  const card = job(video);
  const stop = new AbortController();
  state.following.set(video.id, { card, stop });
  $('now').append(card.node);
  $('idle').hidden = true;
  listen(video.id, card, stop.signal).catch((error) => {
    if (error.name !== 'AbortError') card.note(error.message);
  }).finally(() => over(video.id));
}

async function over(id) {
  const node = state.following.get(id)?.card.node;
  if (node?.contains(document.activeElement)) $('h-now').focus(); // else the keyboard is back at the top
  node?.remove();
  state.following.delete(id);
  $('idle').hidden = state.following.size > 0;
  await gallery();
}

/** Reads the events of a job, and goes on where the connection broke. */
async function listen(id, card, signal) {
  let last = null;
  for (;;) {
    const answer = await ask(`/v1/videos/${id}/events`, { signal, headers: { Accept: 'text/event-stream', ...(last ? { 'Last-Event-ID': last } : {}) } });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = '';
    try {
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        text += value;
        const events = text.split('\n\n');
        text = events.pop();
        for (const lines of events) {
          const fields = Object.fromEntries(lines.split('\n').map((line) => [line.slice(0, line.indexOf(':')), line.slice(line.indexOf(':') + 1).trim()]));
          last = fields.id ?? last;
          if (!fields.event) continue;
          const said = JSON.parse(fields.data);
          if (fields.event === 'done') return;
          card.hear(fields.event, said);
        }
      }
    } catch (error) {
      if (error.name === 'AbortError') throw error;
    }
    away(true);
    await pause(AGAIN / 2);
  }
}

/** A card of a job that is not over. */
function job(video) {
  let now = video;
  let told = 0;
  const screen = element('div', { className: 'screen soft' }, 'no picture yet');
  const strip = element('div');
  const bar = element('progress', { max: 100, value: video.progress, ariaLabel: 'Progress' });
  const where = element('span');
  const left = element('span', { className: 'soft' });
  const notes = element('div');
  // Not disabled meanwhile: that would take the focus away.
  const stop = element('button', { type: 'button', onclick: async () => {
    if (stop.ariaDisabled) return;
    stop.ariaDisabled = 'true';
    await ask(`/v1/videos/${video.id}/cancel`, { method: 'POST' }).catch((error) => { stop.ariaDisabled = null; card.note(error.message); });
  } }, 'Stop');
  const small = Number(video.size.split('x')[0]) <= 128;
  const node = element('li', { className: `card job${small ? ' small' : ''}` }, screen, element('div', {},
    element('p', { className: 'prompt' }, video.prompt), element('p', { className: 'soft row' }, element('span', {}, facts(video)), stop),
    bar, element('p', { className: 'row' }, where, left), strip, notes));
  const draw = () => {
    bar.value = now.progress;
    const { strip: ran, step, steps, eta_seconds: eta, resumed_at_step: resumed } = now.navicache;
    where.textContent = phase(now) + (now.status === 'in_progress' && step ? `, step ${step} of ${steps}` : '') + (resumed ? `, gone on from step ${resumed}` : '');
    left.textContent = eta == null ? '' : `${about(eta)} left`;
    strip.replaceChildren(drawStrip({ strip: ran ?? '', name: 'What ran', steps }));
    const quarter = Math.floor(now.progress / 25);
    if (quarter > told) {
      told = quarter;
      say(`${now.prompt}: ${quarter * 25} %`);
    }
  };
  let shown = '';
  const card = {
    node,
    note: (text) => notes.append(element('p', { className: 'wrong' }, text)),
    hear(event, said) {
      if (event === 'video') now = said;
      if (event === 'step') {
        const { strip: ran } = now.navicache;
        now = { ...now, status: 'in_progress', progress: said.progress, navicache: { ...now.navicache, strip: `${ran ?? ''}${said.ran}|`, step: said.index + 1, steps: said.steps, eta_seconds: said.eta_seconds, phase: 'denoise' } };
      }
      if (event === 'warning') card.note(said.message);
      if (event === 'preview') {
        blobOf(said.url).then((url) => {
          screen.replaceChildren(element('img', { src: url, alt: `Preview after step ${said.index + 1}` }));
          if (shown) URL.revokeObjectURL(shown);
          shown = url;
        }).catch(() => {}); // it was replaced by a newer one
      }
      draw();
    },
  };
  draw();
  return card;
}

/** What is fetched with the key, for pictures and videos: those send no headers of their own. */
async function blobOf(path) {
  return URL.createObjectURL(await (await ask(path)).blob());
}

function facts({ model: name, size, seconds, navicache: { seed, cache, target } }) {
  return `${name} · ${size} · ${seconds} s · seed ${seed}${cache ? ` · ${cache}` : ''}${target ? ` · ${target}` : ''}`;
}

// ---- the gallery

async function gallery() {
  const after = state.pages.at(-1);
  const list = await json(`/v1/videos?limit=${SHOWN}&order=desc${after ? `&after=${encodeURIComponent(after)}` : ''}`);
  for (const video of list.data) if (['queued', 'in_progress'].includes(video.status)) follow(video);
  const ended = list.data.filter(({ status }) => ['completed', 'failed'].includes(status));
  const before = new Map([...$('gallery').children].map((node) => [node.dataset.id, node]));
  const nodes = ended.map((video) => before.get(video.id) ?? card(video));
  for (const node of before.values()) if (!nodes.includes(node)) node.remove();
  // A node that stays is not moved: that would take the focus away.
  nodes.forEach((node, i) => { if ($('gallery').children[i] !== node) $('gallery').insertBefore(node, $('gallery').children[i] ?? null); });
  $('empty').hidden = ended.length > 0;
  $('older').hidden = !list.has_more;
  $('older').onclick = () => { state.pages.push(list.last_id); gallery(); };
  $('newer').hidden = state.pages.length < 2;
  $('newer').onclick = () => { state.pages.pop(); gallery(); };
  estimate(); // what a video takes is known from the last ones
}

/** Thumbnails are fetched when they come into sight. */
const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    blobOf(`/v1/videos/${target.dataset.id}/content?variant=thumbnail`).then((src) => {
      target.replaceChildren(element('img', { src, alt: '' }));
    }).catch(() => target.replaceChildren(element('span', { className: 'none' }, 'no picture')));
  }
}, { rootMargin: '200px' });

/** A card of a video that is over. */
function card(video) {
  const { id, prompt, status, error, size, navicache: made } = video;
  const done = status === 'completed';
  const show = element('button', { type: 'button', className: 'show', ariaLabel: done ? `Play: ${prompt}` : `Not made: ${prompt}` });
  show.dataset.id = id;
  if (done) {
    show.append(element('span', { className: 'none' }, '…'));
    seen.observe(show);
    const play = async () => {
      if (show.querySelector('video')) return;
      const src = await blobOf(`/v1/videos/${id}/content`).catch(() => null);
      if (!src) return;
      const player = element('video', { src, muted: true, loop: true, autoplay: true, playsInline: true, ariaLabel: prompt });
      show.replaceChildren(player);
      player.play().catch(() => {});
    };
    show.addEventListener('click', play);
    if (!matchMedia('(prefers-reduced-motion: reduce)').matches) show.addEventListener('pointerenter', play);
  } else {
    show.disabled = true;
    show.append(element('span', { className: 'none' }, error?.code === 'cancelled' ? 'stopped' : error?.message ?? 'failed'));
  }
  const button = (text, onclick) => element('button', { type: 'button', onclick }, text);
  const again = button('Again', () => fill(video));
  const remove = button('Delete', async () => {
    if (remove.ariaDisabled) return;
    remove.ariaDisabled = 'true';
    await ask(`/v1/videos/${id}`, { method: 'DELETE' }).catch(() => {});
    (node.nextElementSibling?.querySelector('button:not(:disabled)') ?? $('h-gallery')).focus();
    await gallery();
  });
  const buttons = [again, remove];
  if (done) {
    buttons.unshift(button('Save', async () => {
      const link = element('a', { href: await blobOf(`/v1/videos/${id}/content`), download: `${id}.mp4` });
      link.click();
    }), button('Compare', () => choose(video)));
  }
  const rows = [['made with', facts(video)], ['speed-up', number(made.speedup, 2, '×')], ['attempts', made.attempts > 1 ? made.attempts : null], ...made.warnings.map((text) => ['warning', text])];
  const small = Number(size.split('x')[0]) <= 128;
  const node = element('li', { className: `card${small ? ' small' : ''}` }, show, element('p', { className: 'prompt' }, prompt),
    element('div', { className: 'controls' }, ...buttons),
    element('details', {}, element('summary', {}, 'Details'), drawStrip({ strip: made.strip ?? '', name: prompt }),
      element('dl', { className: 'facts' }, ...rows.filter(([, value]) => value != null && value !== '–').flatMap(([key, value]) => [element('dt', {}, key), element('dd', {}, String(value))]))));
  node.dataset.id = id;
  return node;
}

/** Puts a job's settings into the form. */
function fill({ prompt, model: name, size, seconds, navicache: made }) {
  $('prompt').value = prompt;
  $('model').value = name;
  model();
  Object.assign($('size'), { value: size });
  Object.assign($('seconds'), { value: seconds });
  Object.assign($('seed'), { value: made.seed });
  const known = SPEEDS.findIndex(([, target]) => target === (made.target ?? ''));
  $('speed').value = Math.max(0, known);
  $('cache').value = made.target ? '' : made.cache ?? '';
  speed();
  estimate();
  $('prompt').focus();
  $('h-make').scrollIntoView();
}

// ---- two beside each other

const pair = { videos: [], playing: false, view: 'wipe', wipe: 50, gain: 4 };

async function choose(video) {
  state.chosen = [...state.chosen.filter(({ id }) => id !== video.id), video].slice(-2);
  if (state.chosen.length < 2) return say('Choose another one to compare it with.');
  const sources = await Promise.all(state.chosen.map(({ id }) => blobOf(`/v1/videos/${id}/content`)));
  pair.videos = sources.map((src) => element('video', { src, muted: true, loop: true, playsInline: true, preload: 'auto' }));
  const [width, height] = state.chosen[0].size.split('x').map(Number);
  Object.assign($('canvas'), { width, height });
  $('frame').classList.toggle('small', width <= 128);
  $('beside').hidden = false;
  $('beside-facts').replaceChildren(...state.chosen.map((chosen, i) => element('div', {},
    element('h3', {}, `${i ? 'Right' : 'Left'}: ${chosen.navicache.target ?? chosen.navicache.cache ?? 'uncached'}`),
    element('p', { className: 'soft' }, `${chosen.prompt} · ${facts(chosen)}${chosen.navicache.speedup > 1 ? ` · ${number(chosen.navicache.speedup, 2, '×')} less work` : ''}`),
    drawStrip({ strip: chosen.navicache.strip ?? '', name: i ? 'Right' : 'Left' }))));
  pair.videos[0].addEventListener('seeked', look);
  pair.videos.forEach((player) => player.addEventListener('loadeddata', look));
  view({});
  closeness(sources);
  $('h-beside').scrollIntoView();
  $('h-beside').focus();
  if (!matchMedia('(prefers-reduced-motion: reduce)').matches) run(true);
}

/** Says how close the second is to the first, over frames at even distances, as they are shown here: both files are lossy. */
async function closeness(sources) {
  const chosen = [...state.chosen];
  const [one, two] = chosen;
  const said = (text) => { if (chosen.every((video, i) => video === state.chosen[i])) $('closeness').textContent = text; };
  if (one.size !== two.size || one.navicache.frames !== two.navicache.frames) return said('Of another size or length: no PSNR.');
  said('Comparing frames\u2026');
  const { frames, fps } = one.navicache;
  const [width, height] = one.size.split('x').map(Number);
  const players = sources.map((src) => element('video', { src, muted: true, preload: 'auto' }));
  const pen = element('canvas', { width, height }).getContext('2d', { willReadFrequently: true });
  const pixels = async (player, time) => {
    await new Promise((resolve, reject) => {
      Object.assign(player, { onseeked: resolve, onerror: () => reject(new Error('The videos cannot be read here: no PSNR.')) });
      player.currentTime = time;
    });
    pen.drawImage(player, 0, 0, width, height);
    return pen.getImageData(0, 0, width, height).data;
  };
  try {
    const looked = Math.min(frames, FRAMES);
    let sum = 0;
    for (let i = 0; i < looked; i += 1) {
      const time = (Math.floor((i * frames) / looked) + 0.5) / fps;
      const [a, b] = [await pixels(players[0], time), await pixels(players[1], time)];
      for (let k = 0; k < a.length; k += 1) sum += (a[k] - b[k]) ** 2; // the fourth, opacity, is equal
    }
    const mean = sum / (looked * width * height * 3);
    said(mean === 0 ? 'Every frame is the same.' : `PSNR ${number(10 * Math.log10(255 ** 2 / mean), 1)}\u00a0dB, over ${looked} frames as shown.`);
  } catch (error) {
    said(error.message);
  }
}

function view(changes) {
  Object.assign(pair, changes);
  const wipe = pair.view === 'wipe';
  $('wipe-label').hidden = !wipe;
  $('edge').hidden = !wipe;
  $('gain-label').hidden = wipe;
  $('edge').style.left = `${pair.wipe}%`;
  $('wipe').value = pair.wipe;
  look();
}

function look() {
  const [a, b] = pair.videos;
  if (a?.readyState >= 2 && b?.readyState >= 2) blend($('canvas'), a, b, pair);
}

function run(playing) {
  pair.playing = playing;
  $('play').textContent = playing ? 'Pause' : 'Play';
  const [a, b] = pair.videos;
  pair.videos.forEach((player) => (playing ? player.play().catch(() => {}) : player.pause()));
  const tick = () => {
    if (!pair.playing || pair.videos[0] !== a) return;
    if (Math.abs(a.currentTime - b.currentTime) > 0.05 && !b.seeking) b.currentTime = a.currentTime;
    look();
    requestAnimationFrame(tick);
  };
  if (playing) tick();
}

// ---- the beginning

function speed() {
  $('speed-says').textContent = SPEEDS[$('speed').value][0];
  $('speed').setAttribute('aria-valuetext', SPEEDS[$('speed').value][0]);
}

async function queue() {
  const { length, running } = await json('/v1/queue');
  $('queue').textContent = running || length ? `${running} being made, ${length} waiting.` : 'Video that computes only the steps that matter.';
}

async function begin() {
  $('make').addEventListener('submit', send);
  $('prompt').addEventListener('keydown', (event) => { if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) $('make').requestSubmit(); });
  $('make').addEventListener('input', estimate);
  $('speed').addEventListener('input', speed);
  $('model').addEventListener('change', model);
  $('die').addEventListener('click', () => { $('seed').value = Math.floor(Math.random() * 2 ** 32); });
  $('picture').addEventListener('change', () => picture($('picture').files[0]));
  $('picture-off').addEventListener('click', () => { $('picture').value = ''; picture(null); });
  $('make').addEventListener('dragover', (event) => { event.preventDefault(); $('drop').classList.add('over'); });
  $('make').addEventListener('dragleave', () => $('drop').classList.remove('over'));
  $('make').addEventListener('drop', (event) => {
    event.preventDefault();
    $('drop').classList.remove('over');
    picture(event.dataTransfer.files[0]);
  });
  document.addEventListener('paste', (event) => { const [file] = event.clipboardData.files; if (file) picture(file); });
  for (const radio of document.getElementsByName('view')) radio.addEventListener('change', () => view({ view: radio.value }));
  $('wipe').addEventListener('input', () => view({ wipe: Number($('wipe').value) }));
  $('gain').addEventListener('change', () => view({ gain: Number($('gain').value) }));
  $('play').addEventListener('click', () => run(!pair.playing));
  $('beside-off').addEventListener('click', () => { run(false); $('beside').hidden = true; state.chosen = []; });
  speed();

  state.models = (await json('/v1/models')).data;
  $('model').replaceChildren(...state.models.map(({ id }) => element('option', { value: id }, id)));
  model();
  estimate();
  await gallery();
  for (;;) {
    await queue();
    // What another tab or program sent is found here.
    const list = await json('/v1/videos?limit=100&order=desc');
    list.data.filter(({ status }) => ['queued', 'in_progress'].includes(status)).forEach(follow);
    await pause(5000);
  }
}

begin();
