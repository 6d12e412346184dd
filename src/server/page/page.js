// A conversation is a tree of messages: an edit or another answer is a sibling of what it replaces.
// `leaf` is where the shown branch ends. Everything is kept in localStorage.
import { render } from '/markdown.js';

const $ = (id) => document.getElementById(id);
const make = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};
const button = (text, onclick, className) => {
  const node = make('button', className, text);
  node.type = 'button';
  node.onclick = onclick;
  return node;
};
const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(8)),
                               (b) => b.toString(16).padStart(2, '0')).join('');
const count = (n) => Math.round(n).toLocaleString('en');
const seconds = (s) => s < 90 ? `${Math.round(s)} s` :
  s < 5400 ? `${Math.floor(s / 60)} min ${Math.round(s % 60)} s` :
  `${Math.floor(s / 3600)} h ${Math.round(s % 3600 / 60)} min`;

const defaults = { system: '', temperature: 0.8, top_p: 0.95, top_k: 0, min_p: 0,
                   repetition_penalty: 1, max_tokens: 1024, seed: '' };
const store = {
  get: (key, otherwise) => JSON.parse(localStorage.getItem('mm01.' + key)) ?? otherwise,
  set(key, value) {
    try {
      localStorage.setItem('mm01.' + key, JSON.stringify(value));
    } catch {
      notice('The browser has no room for more conversations; remove some.');
    }
  },
};

let model = null;        // of /v1/models
let chats = store.get('chats', []);  // newest first: {id, title}
let chat = null;         // {id, title, nodes: {id: {id, parent, role, text, files, stats}}, leaf}
let settings = { ...defaults, ...store.get('settings', {}) };
let pending = [];        // files: {name, text}
let running = null;      // AbortController

function notice(text) {
  $('notice').textContent = text;
  $('notice').hidden = !text;
}

// --- Conversations

function open(id) {
  chat = store.get('chat.' + id, null) ?? { id: newId(), title: 'New chat', nodes: {}, leaf: null };
  show();
}

function save() {
  if (!chats.some((c) => c.id === chat.id)) chats.unshift({ id: chat.id, title: chat.title });
  chats.find((c) => c.id === chat.id).title = chat.title;
  store.set('chats', chats);
  store.set('chat.' + chat.id, chat);
}

function remove(id) {
  chats = chats.filter((c) => c.id !== id);
  store.set('chats', chats);
  localStorage.removeItem('mm01.chat.' + id);
  if (chat.id === id) open(null);
  showHistory();
}

function branch() {
  const nodes = [];
  for (let id = chat.leaf; id; id = chat.nodes[id].parent) nodes.unshift(chat.nodes[id]);
  return nodes;
}

const siblings = (node) =>
  Object.values(chat.nodes).filter((n) => n.parent === node.parent && n.role === node.role);

function newest(node) {  // the leaf below
  const children = Object.values(chat.nodes).filter((n) => n.parent === node.id);
  return children.length ? newest(children[children.length - 1]) : node;
}

function add(parent, role, text, files = []) {
  const node = { id: newId(), parent, role, text, files };
  chat.nodes[node.id] = node;
  chat.leaf = node.id;
  return node;
}

// --- Showing

function showHistory() {
  $('history').replaceChildren(...chats.map((c) => {
    const item = make('div', 'item' + (c.id === chat.id ? ' current' : ''));
    const remover = button('×', () => remove(c.id), 'remove');
    remover.title = 'Remove';
    item.append(button(c.title, () => { if (!running) open(c.id); }, 'open'), remover);
    return item;
  }));
}

function show() {
  showHistory();
  const nodes = branch();
  $('messages').replaceChildren(...nodes.map(messageNode));
  if (!nodes.length) {
    const empty = make('div', 'empty');
    empty.append(make('h1', '', isChat() ? 'What shall we read?' : 'Begin a text'),
                 make('p', '', isChat() ? 'Ask something, or drop a long text file here and ask about it.'
                                        : 'The model goes on from where you stop.'));
    $('messages').append(empty);
  }
  const last = nodes.findLast((n) => n.stats);
  showContext(last ? last.stats.total : 0);
  $('messages').scrollTop = $('messages').scrollHeight;
}

function fillBody(body, node) {
  body.replaceChildren(...(node.files ?? []).map((f) => make('span', 'file', f.name)));
  if (node.files?.length) body.append(make('br'));
  if (node.role === 'assistant' && isChat()) body.append(render(node.text));
  else body.append(node.text);
  if (node.error) body.append(make('p', 'error', node.error));
}

function messageNode(node) {
  const outer = make('article', `message ${node.role}` + (isChat() ? '' : ' continue'));
  outer.dataset.id = node.id;
  const body = make('div', 'body');
  fillBody(body, node);
  const tools = make('div', 'tools');
  const all = siblings(node);
  if (all.length > 1) {
    const at = all.indexOf(node);
    const go = (step) => () => {
      if (running || !all[at + step]) return;
      chat.leaf = newest(all[at + step]).id;
      save();
      show();
    };
    const place = make('span', 'place', `${at + 1} / ${all.length}`);
    tools.append(button('‹', go(-1)), place, button('›', go(1)));
  }
  if (node.role === 'user') tools.append(button('Edit', () => edit(node, outer)));
  else tools.append(button('Regenerate', () => { if (!running) answer(node.parent); }));
  tools.append(button('Copy', () => navigator.clipboard.writeText(node.text)));
  if (node.stats) tools.append(make('span', 'stats', statsText(node.stats)));
  outer.append(body, tools);
  return outer;
}

function statsText(s) {
  const speed = s.seconds > 0 ? `, ${(s.written / s.seconds).toFixed(1)} tokens/s` : '';
  const cached = s.cached ? ` (${count(s.cached)} from the cache)` : '';
  return `read ${count(s.prompt)}${cached}, wrote ${count(s.written)}${speed}`;
}

function edit(node, outer) {
  if (running) return;
  const area = make('textarea', 'editor');
  area.value = node.text;
  const tools = make('div', 'tools');
  tools.append(button('Cancel', show), button('Send', () => {
    const replaced = add(node.parent, 'user', area.value, node.files);
    answer(replaced.id);
  }));
  outer.replaceChildren(area, tools);
  area.focus();
}

function gauge(id, share, text) {
  $(id).querySelector('i').style.width = `${Math.min(100, share * 100)}%`;
  $(id).querySelector('.value').textContent = text;
}

function showContext(tokens) {
  const total = model?.max_model_len ?? 0;
  gauge('context-gauge', total ? tokens / total : 0, `${count(tokens)} / ${count(total)}`);
}

async function showMemory() {
  try {
    const text = await (await fetch('/metrics')).text();
    const value = (name) => Number(text.match(new RegExp(`^mm01_${name} (\\S+)`, 'm'))?.[1] ?? 0);
    const pages = value('kv_pages');
    const kept = value('snapshot_bytes') / 2 ** 20;
    gauge('memory-gauge', pages ? value('kv_pages_used') / pages : 0,
          `${pages ? Math.round(100 * value('kv_pages_used') / pages) : 0}% · ${count(kept)} MiB kept`);
  } catch { /* the next one may come through */ }
}

function showProgress(p) {
  $('progress').hidden = !p;
  if (!p) return;
  const done = p.total ? p.done / p.total : 0;
  $('progress').querySelector('i').style.width = `${100 * done}%`;
  $('progress').querySelector('span').textContent = p.total
    ? `reading ${count(p.done)} of ${count(p.total)} tokens` +
      (p.tokens_per_second ? `, ${count(p.tokens_per_second)} a second` : '') +
      (p.seconds_left ? `, ${seconds(p.seconds_left)} left` : '')
    : 'waiting';
}

// --- Asking

const isChat = () => model?.has_chat_template ?? true;

function requestBody(parent) {
  const nodes = [];
  for (let id = parent; id; id = chat.nodes[id].parent) nodes.unshift(chat.nodes[id]);
  const body = { model: model.id, stream: true,
                 stream_options: { include_usage: true, include_progress: true } };
  for (const key of ['temperature', 'top_p', 'top_k', 'min_p', 'repetition_penalty', 'max_tokens']) {
    if (settings[key] !== '') body[key] = Number(settings[key]);
  }
  if (settings.seed !== '') body.seed = Number(settings.seed);
  if (!isChat()) {
    body.prompt = nodes.map((n) => [...(n.files ?? []).map((f) => f.text), n.text].join('\n')).join('');
    return body;
  }
  body.messages = nodes.map((n) => ({ role: n.role, content: n.files?.length
    ? [...n.files.map((f) => ({ type: 'text', text: `File ${f.name}:\n\n${f.text}` })),
       { type: 'text', text: n.text }]
    : n.text }));
  if (settings.system) body.messages.unshift({ role: 'system', content: settings.system });
  return body;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    buffer += value;
    for (let end; (end = buffer.indexOf('\n\n')) >= 0; buffer = buffer.slice(end + 2)) {
      const event = buffer.slice(0, end);
      if (event.startsWith('data: {')) yield JSON.parse(event.slice(6));
    }
  }
}

function take(node, event) {
  if (event.error) throw new Error(event.error.message);
  if (event.progress) return showProgress(event.progress);
  showProgress(null);
  for (const choice of event.choices) node.text += choice.delta?.content ?? choice.text ?? '';
  if (!event.usage) return;
  node.stats = { prompt: event.usage.prompt_tokens, written: event.usage.completion_tokens,
                 total: event.usage.total_tokens,
                 cached: event.usage.prompt_tokens_details?.cached_tokens ?? 0,
                 seconds: event.timings?.decode_seconds ?? 0 };
}

async function answer(parent) {
  const node = add(parent, 'assistant', '');
  const request = JSON.stringify(requestBody(parent));
  save();
  show();
  running = new AbortController();
  setRunning(true);
  const body = document.querySelector(`[data-id="${node.id}"] .body`);
  body.classList.add('cursor');
  showProgress({});
  let frame = 0;
  const repaint = () => {
    frame = 0;
    const at_end = $('messages').scrollHeight - $('messages').scrollTop - $('messages').clientHeight < 80;
    fillBody(body, node);
    if (at_end) $('messages').scrollTop = $('messages').scrollHeight;
  };
  try {
    const response = await fetch(isChat() ? '/v1/chat/completions' : '/v1/completions', {
      method: 'POST', headers: { 'Content-Type': 'application/json' }, body: request,
      signal: running.signal });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const event of events(response)) {
      take(node, event);
      frame ||= requestAnimationFrame(repaint);
    }
  } catch (error) {
    if (error.name !== 'AbortError') node.error = error.message;
  }
  cancelAnimationFrame(frame);
  running = null;
  setRunning(false);
  showProgress(null);
  save();
  show();
  showMemory();
}

function setRunning(on) {
  $('send').hidden = on;
  $('stop').hidden = !on;
}

function send() {
  const text = $('input').value;
  if (running || !model || (!text.trim() && !pending.length)) return;
  if (!Object.keys(chat.nodes).length) {
    chat.title = (text.trim() || pending[0].name).slice(0, 60);
  }
  const node = add(chat.leaf, 'user', text, pending);
  $('input').value = '';
  pending = [];
  showFiles();
  resize();
  answer(node.id);
}

// --- Files

function showFiles() {
  $('files').replaceChildren(...pending.map((f, i) => {
    const item = make('span', 'file', `${f.name}, ${count(f.text.length / 1024)} KiB`);
    item.append(button('×', () => { pending.splice(i, 1); showFiles(); }));
    return item;
  }));
}

async function addFiles(files) {
  for (const file of files) {
    const text = await file.text();
    if (text.includes('\0') || text.includes('\uFFFD')) {
      notice(`${file.name} is not plain text.`);
      continue;
    }
    pending.push({ name: file.name, text });
  }
  showFiles();
}

// --- Everything else

function resize() {
  $('input').style.height = 'auto';
  $('input').style.height = `${$('input').scrollHeight}px`;
}

function showSettings() {
  for (const key of Object.keys(defaults)) $('set-' + key).value = settings[key];
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  store.set('theme', theme);
}

async function connect() {
  for (;;) {
    try {
      const response = await fetch('/v1/models');
      if (response.ok) {
        model = (await response.json()).data[0];
        break;
      }
    } catch { /* not up yet */ }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
  $('model-name').textContent = model.id;
  if (!isChat()) {
    notice('This model brought no chat template: it continues your text instead of answering it.');
    $('input').placeholder = 'Text to continue';
    $('send').textContent = 'Continue';
  }
  show();
  showMemory();
}

$('composer').onsubmit = (e) => { e.preventDefault(); send(); };
$('input').oninput = resize;
$('input').onkeydown = (e) => {
  if (e.key === 'Enter' && !e.shiftKey && !e.isComposing) { e.preventDefault(); send(); }
};
$('stop').onclick = () => running?.abort();
$('new-chat').onclick = () => { if (!running) { open(null); $('input').focus(); } };
$('toggle-sidebar').onclick = () => document.body.classList.toggle('narrow');
$('toggle-settings').onclick = () => { $('settings').hidden = !$('settings').hidden; };
$('toggle-theme').onclick = () =>
  setTheme(document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark');
$('reset-settings').onclick = () => {
  settings = { ...defaults };
  store.set('settings', settings);
  showSettings();
};
$('settings').oninput = (e) => {
  settings[e.target.id.slice(4)] = e.target.value;
  store.set('settings', settings);
};
$('file').onchange = (e) => { addFiles(e.target.files); e.target.value = ''; };
addEventListener('dragover', (e) => { e.preventDefault(); $('drop').hidden = false; });
addEventListener('dragleave', (e) => { if (!e.relatedTarget) $('drop').hidden = true; });
addEventListener('drop', (e) => {
  e.preventDefault();
  $('drop').hidden = true;
  addFiles(e.dataTransfer.files);
});
setInterval(() => { if (!document.hidden && model) showMemory(); }, 10000);

setTheme(store.get('theme', matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light'));
showSettings();
open(chats[0]?.id);
connect();
