// What a page gains by a script: keys, theme, times in the reader's zone, live updates, selection, countdown, cross-hair.
// Without it every page reads and works. Nothing here holds state that the server does not: it is asked again.
(() => {
'use strict';
const $ = (s, e = document) => e.querySelector(s), $$ = (s, e = document) => [...e.querySelectorAll(s)];
const root = document.documentElement, base = document.body?.dataset.base ?? '', draw = [];
const store = { get: k => { try { return localStorage.getItem('notifyworker.' + k); } catch { return null; } }, set: (k, v) => { try { localStorage.setItem('notifyworker.' + k, v); } catch { /* private windows */ } } };
// theme: system, light, dark
const order = ['system', 'light', 'dark'];
let theme = order.includes(store.get('theme')) ? store.get('theme') : 'system';
const paint = () => { theme === 'system' ? root.removeAttribute('data-theme') : root.setAttribute('data-theme', theme); const t = $('[data-theme-name]'); if (t) t.textContent = theme; draw.forEach(f => f()); };
// times: the server says UTC; here they stand in the reader's zone, and the exact moment stays in the title
const pad = (n, w = 2) => String(n).padStart(w, '0');
const span = s => s < 0.9995 ? Math.round(s * 1000) + ' ms' : s < 9.95 ? s.toFixed(1).replace('.0', '') + ' s' : s < 120 ? Math.round(s) + ' s' : s < 3600 ? Math.round(s / 60) + ' min' : s < 172800 ? Math.round(s / 3600) + ' h' : Math.round(s / 86400) + ' d';
const local = () => $$('time[data-f]').forEach(t => {
  const f = t.dataset.f, d = new Date(t.dateTime); if (isNaN(d) || f === 'ago' || f === 'for') return;
  const day = Math.abs(Date.now() - d) < 72e6 ? '' : d.getDate() + ' ' + d.toLocaleString('en', { month: 'short' }) + ' ';
  const text = day + pad(d.getHours()) + ':' + pad(d.getMinutes()) + (f === 'm' ? '' : ':' + pad(d.getSeconds()) + (f === 'ms' ? '.' + pad(d.getMilliseconds(), 3) : ''));
  if (t.textContent !== text) t.textContent = text;
});
// how long ago: by the server's clock, which a page that did not change is not told again
let zero = { at: 0, now: 0 };
const passed = () => $$('time[data-f=ago], time[data-f=for]').forEach(t => {
  const s = zero.now + (performance.now() - zero.at) / 1000 - Date.parse(t.dateTime) / 1000;
  const text = s > -1 ? span(Math.max(0, s)) + (t.dataset.f === 'ago' ? ' ago' : '') : 'in ' + span(-s);
  if (t.textContent !== text) t.textContent = text;
});
// live: the pulse asks for the page again, unless the reader is at work on it; then it is asked for when the hand is off
let paused = store.get('paused') === '1', seen = Date.now(), cut = false, last = 0, missed = false, tries = 0;
const main = () => $('#main'), busy = () => !!$('tbody input:checked') || !!$('#ask:popover-open, #keys:popover-open') || /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName ?? '') && document.activeElement.type !== 'checkbox' || !!String(getSelection());
const show = () => {
  const b = $('[data-live-toggle]'); if (!b) return;
  b.hidden = false; b.setAttribute('aria-pressed', String(!paused));
  const held = !paused && busy(), age = Math.round((Date.now() - seen) / 1000);
  $('span', b).textContent = paused ? 'Paused' : cut ? 'Reconnecting' : held ? 'Held' : 'Live';
  $('[data-age]', b).textContent = ' ' + age + ' s ago';
};
const toggle = () => { paused = !paused; store.set('paused', paused ? '1' : '0'); show(); if (!paused) again(); };
const again = () => { const s = $('#stream'); if (s && window.htmx) htmx.trigger(s, 'tick'); };
const still = () => paused || busy() || document.hidden;
// asked twice: the hand may have come down while the answer was on its way
for (const when of ['request', 'swap']) addEventListener('htmx:before:' + when, e => { if (e.target?.id === 'main' && still()) { missed = true; e.preventDefault(); } }, true);
// the server draws a page once for all who see the same; who has seen it already is sent no more than that
addEventListener('htmx:before:request', e => { if (e.target?.id === 'main') e.detail.ctx.request.headers['X-Seen'] = e.target.dataset.seen; });
addEventListener('htmx:after:request', e => { if (e.target?.id === 'main' && e.detail.ctx.response.status === 204) { seen = Date.now(); passed(); show(); e.preventDefault(); } });
addEventListener('htmx:after:swap', () => { dressed(); });
addEventListener('htmx:sse:error', () => { cut = true; show(); });
addEventListener('htmx:sse:close', () => { cut = true; show(); });
// htmx takes up a stream again that was there once, and gives up one whose first connection fails: we ask for it again
const first = e => { if (e.target?.id !== 'stream' || e.target._htmx?.sse) return; cut = true; show(); setTimeout(() => htmx.trigger(e.target, 'connect'), Math.min(15000, 500 * 2 ** tries++) * (0.7 + 0.6 * Math.random())); };
addEventListener('htmx:finally:request', first);
// also at first: what has changed between the page and this connection, nobody tells again; but what was done is to be read
addEventListener('htmx:sse:after:connection', () => { if (cut || !$('.done')) again(); cut = false; tries = 0; show(); });
// a summary for those who listen, at most every ten seconds
const said = () => { const h = $('h1'), p = $('#said'); if (!h || !p || Date.now() - last < 10000) return; const text = h.textContent.trim(); if (p.textContent !== text) { p.textContent = text; last = Date.now(); } };
// selection
const released = () => { if (missed && !still()) { missed = false; again(); } };
const count = () => {
  const bulk = $('#bulk'); if (!bulk) return;
  const on = $$('tbody input:checked'), by = {};
  $$('tbody tr').forEach(r => r.classList.toggle('sel', !!$('input:checked', r)));
  on.forEach(i => { by[i.dataset.state] = (by[i.dataset.state] ?? 0) + 1; });
  bulk.hidden = !on.length;
  $('[data-count]', bulk).textContent = on.length + ' selected';
  $('[data-states]', bulk).textContent = Object.entries(by).map(([s, n]) => n + ' ' + s).join(', ');
  const live = (by.pending ?? 0) + (by.running ?? 0), done = on.length - live;
  for (const [what, n] of [['cancel', live], ['retry', done]]) { const b = $(`[data-do=${what}]`, bulk); b.hidden = !n; $('span', b).textContent = (what === 'cancel' ? 'Cancel ' : 'Retry ') + n + (n === 1 ? ' run' : ' runs'); }
  const all = $('[data-all]'); if (all) { all.checked = on.length > 0 && on.length === $$('tbody input').length; }
  show(); released();
};
addEventListener('change', e => {
  if (e.target.matches('[data-all]')) $$('tbody input[name=id]').forEach(i => { i.checked = e.target.checked; });
  if (e.target.type === 'checkbox') count();
  if (e.target.matches('#filters select')) e.target.form.requestSubmit();
});
addEventListener('submit', e => { if (e.target.id === 'filters') $$('input,select', e.target).forEach(i => { if (!i.value || i.name === 'mode' && i.value === 'both') i.disabled = true; }); });
const shift = { at: null };
addEventListener('click', async e => {
  const t = e.target.closest?.('button, a, input'); if (!t) return;
  if (t.matches('[data-live-toggle]')) toggle();
  else if (t.matches('[data-theme-toggle]')) { theme = order[(order.indexOf(theme) + 1) % 3]; store.set('theme', theme); paint(); }
  else if (t.matches('[data-clear]')) { $$('tbody input').forEach(i => { i.checked = false; }); count(); }
  else if (t.matches('[data-copy]')) { await copy($('#' + t.dataset.copy).textContent, t); }
  else if (t.matches('[data-copy-link]')) { await copy(location.href, t); }
  else if (t.matches('[data-dismiss]') && t.closest('[popover]')) { e.preventDefault(); t.closest('[popover]').hidePopover(); }
  else if (t.matches('tbody input[name=id]')) {
    if (e.shiftKey && shift.at) { const all = $$('tbody input[name=id]'), [a, b] = [all.indexOf(shift.at), all.indexOf(t)].sort((x, y) => x - y); all.slice(Math.max(0, a), b + 1).forEach(i => { i.checked = t.checked; }); count(); }
    shift.at = t;
  }
});
const copy = async (text, button) => { try { await navigator.clipboard.writeText(text); } catch { return; } const n = button.lastChild, was = n.textContent; n.textContent = 'Copied'; setTimeout(() => { n.textContent = was; }, 1500); };
// the question before an action stands in a popover
addEventListener('htmx:after:swap', e => { const ask = $('#ask'); if (ask?.firstElementChild && !ask.matches(':popover-open') && (e.target === ask || e.target.id === 'ask' || e.detail?.ctx?.target?.id === 'ask')) { ask.showPopover(); $('input:not([type=hidden]), textarea, [data-dismiss]', ask)?.focus(); } });
$('#ask')?.addEventListener('toggle', e => { if (e.newState === 'closed') { e.target.replaceChildren(); show(); } });
// keys
const to = { o: '/', r: '/runs', w: '/workers', s: '/schedules', h: '/shadow', u: '/pauses', e: '/reaper', y: '/system', a: '/audit' };
let g = 0;
const rows = () => $$('tbody tr').filter(r => $('a', r));
const at = () => rows().indexOf(document.activeElement?.closest?.('tr'));
const step = d => { const r = rows(); if (!r.length) return; const i = Math.max(0, Math.min(r.length - 1, at() + d)); $('a', r[i]).focus({ preventScroll: true }); r[i].scrollIntoView({ block: 'nearest' }); };
addEventListener('keydown', e => {
  if (e.ctrlKey || e.metaKey || e.altKey || e.isComposing || e.target.matches?.('input:not([type=checkbox]), select, textarea') || $('#ask:popover-open')) return;
  if (g && Date.now() - g < 900 && to[e.key]) { location.href = base + to[e.key]; return; }
  g = e.key === 'g' ? Date.now() : 0;
  if (e.key === '/') { const q = $('#q'); e.preventDefault(); q ? q.focus() : location.href = base + '/runs#q'; }
  else if (e.key === '?') $('#keys')?.togglePopover();
  else if (e.key === 'j') step(1); else if (e.key === 'k') step(-1);
  else if (e.key === 'p') toggle();
  else if (e.key === 'x') $('input[name=id]', rows()[at()] ?? document.createElement('i'))?.click();
});
// lease: seconds, as the server last said them
let lease = null;
const leased = () => { const o = $('[data-lease]'); lease = o ? { o, end: performance.now() + 1000 * o.dataset.lease, of: +o.dataset.of } : null; };
const tick = () => {
  show(); released();
  if (!lease || !lease.o.isConnected) return;
  const left = Math.max(0, (lease.end - performance.now()) / 1000), bar = $('[data-lease-bar]');
  lease.o.textContent = left > 0 ? Math.floor(left / 60) + ':' + pad(Math.floor(left % 60)) : '0:00';
  bar?.setAttribute('width', Math.min(100, left / lease.of * 100) + '%');
};
// latency: uPlot takes the place of the server's drawing, and adds the cross-hair
let plot = null, drawn = '';
const latency = () => {
  const fig = $('[data-uplot]'); if (!fig || !window.uPlot) return;
  const s = fig.dataset.uplot.split(';').map(l => l.split(',').map(v => v === '' ? null : +v)), known = s[2].filter(v => v !== null);
  const key = fig.dataset.uplot + fig.clientWidth + theme + matchMedia('(prefers-color-scheme:dark)').matches;
  if (known.length < 2 || (key === drawn && fig.contains(plot?.root))) return;
  drawn = key; plot?.destroy(); plot = null;
  const x = s[0].map((_, i) => +fig.dataset.from + i * fig.dataset.step), out = $('[data-readout]');
  const ink = c => { const n = 'http://www.w3.org/2000/svg', v = document.createElementNS(n, 'svg'), p = document.createElementNS(n, 'line'); p.setAttribute('class', c); v.append(p); fig.append(v); const r = getComputedStyle(p).stroke; v.remove(); return r; };
  const grid = { stroke: ink('grid'), width: 1 }, font = '11px ' + getComputedStyle(document.body).fontFamily, text = ink('l4');
  const colours = ['l3', 'l2', 'l1'].map(ink), hh = v => { const d = new Date(v * 1000); return pad(d.getHours()) + ':' + pad(d.getMinutes()); };
  fig.replaceChildren();
  plot = new uPlot({ width: fig.clientWidth, height: 190, padding: [8, 0, 0, 0], legend: { show: false }, cursor: { y: false, points: { show: false }, drag: { x: false } },
    scales: { y: { range: (_, lo, hi) => [0, Math.max(hi ?? 1, 1e-3) * 1.08] } },
    axes: [{ grid: { show: false }, ticks: { show: false }, size: 18, gap: 4, font, stroke: text, values: (_, v) => v.map(hh) }, { grid, ticks: { show: false }, size: 44, gap: 8, font, stroke: text, space: 34 }],
    series: [{}, ...colours.map(c => ({ stroke: c, width: 1.5, spanGaps: true, points: { show: false } }))],
    hooks: { setCursor: [u => { const i = u.cursor.idx; out.textContent = i == null ? '' : hh(x[i]) + ': ' + s.map(l => l[i] == null ? 'none' : l[i] < 10 ? l[i].toFixed(1) : l[i].toFixed(0)).join(', ') + ' ms'; }] } }, [x, ...s], fig);
};
draw.push(latency);
const dressed = () => {
  const m = main(); if (m?.dataset.live === 'true') seen = Date.now();
  if (m) zero = { at: performance.now(), now: +m.dataset.now };
  local(); leased(); said(); latency(); count(); tick();
  $$('[data-copy], [data-copy-link], [data-all]').forEach(b => { b.hidden = false; });
};
// what was done is told once: a reload does not tell it again
const told = new URL(location.href);
if (told.searchParams.has('done')) { told.searchParams.delete('done'); history.replaceState(null, '', told); const m = main(); m?.setAttribute('hx-get', told.pathname + told.search); }
paint(); dressed(); setInterval(tick, 1000);
addEventListener('resize', latency);
addEventListener('pageshow', e => { if (e.persisted) { $$('#filters :disabled').forEach(i => { i.disabled = false; }); count(); again(); } });
matchMedia('(prefers-color-scheme:dark)').addEventListener('change', latency);
if (location.hash === '#q') $('#q')?.focus();
})();
