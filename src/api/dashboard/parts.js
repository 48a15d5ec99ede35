// What several views show alike.

import { h } from './dom.js';
import { clock, count, fromNow, kindOf, none, words } from './format.js';

const ICONS = {
  ok: 'M3.5 8.5l3 3 6-7',
  busy: 'M8 2.5a5.5 5.5 0 1 1-5.5 5.5M8 5v3l2 1.5',
  idle: 'M8 2.5a5.5 5.5 0 1 0 0 11 5.5 5.5 0 0 0 0-11z',
  warn: 'M8 2.5l6 11H2zM8 6.5v3.2M8 11.6v.2',
  bad: 'M4 4l8 8M12 4l-8 8',
  off: 'M3.5 8h9',
};

/** A state: icon and word, so that the colour is never all there is. */
export function badge(state, kind = kindOf(state)) {
  return h('span', { class: `badge ${kind}` }, icon(kind), words(state));
}

export function icon(kind) {
  return h('svg', { class: `icon ${kind}`, viewBox: '0 0 16 16', 'aria-hidden': 'true' }, h('path', { d: ICONS[kind] }));
}

/** A time: how far from now, and exactly when on hovering. */
export function when(at) {
  return at ? h('time', { datetime: at, title: `${clock(at)} (${at})` }, fromNow(at)) : none;
}

/** A table in a frame that scrolls by itself; below 860 px each row is a card, and its cells say what they are. */
export function table(caption, columns, rows, empty) {
  if (rows.length === 0) return h('div', { class: 'empty' }, empty);
  const head = columns.map(([name, kind]) => h('th', { scope: 'col', role: 'columnheader', class: kind }, name || h('span', { class: 'unseen' }, 'Actions')));
  const body = rows.map(({ key, cells, current }) =>
    h('tr', { key, role: 'row', class: current ? 'current' : null }, cells.map((cell, at) =>
      h('td', { role: 'cell', class: columns[at][1], 'data-name': columns[at][0] }, Array.isArray(cell) ? h('div', null, cell) : cell))));
  return h('table', { role: 'table' },
    h('caption', { class: 'unseen' }, caption),
    h('thead', { role: 'rowgroup' }, h('tr', { role: 'row' }, head)),
    h('tbody', { role: 'rowgroup' }, body));
}

/** Names and what they are, in pairs. */
export function facts(...pairs) {
  const known = pairs.filter(([, value]) => value !== null && value !== undefined && value !== '');
  return h('dl', { class: 'facts' }, known.map(([name, value]) => h('div', null, h('dt', null, name), h('dd', null, value))));
}

/** A problem as the server told it, word by word. */
export function trouble(problem) {
  const { title, detail, errors, instance, type } = problem.document ?? { title: 'This page has a fault', detail: String(problem) };
  return h('div', { class: 'trouble', role: 'alert' }, icon('bad'), h('div', null,
    h('strong', null, title),
    detail && h('p', null, detail),
    errors?.length > 0 && h('ul', null, errors.map(error => h('li', null, h('code', null, error.path), ' ', error.message))),
    (problem.status > 0 || instance) && h('p', { class: 'small' }, [problem.status || null, type, instance].filter(Boolean).join(' · '))));
}

/** A labelled field. */
export function field(label, control, hint) {
  return h('label', { class: 'field' }, h('span', null, label), control, hint && h('span', { class: 'small' }, hint));
}

export function choice(name, value, options) {
  return h('select', { name, value }, options.map(option => {
    const [of, text] = Array.isArray(option) ? option : [option, words(option)];
    return h('option', { value: of }, text);
  }));
}

export function button(text, onclick, kind = '', more = {}) {
  return h('button', { type: 'button', class: kind, onclick, ...more }, text);
}

/** Text of others, in full up to a bound: a page is no place for megabytes. */
export function source(text, label, most = 200_000) {
  const cut = text.length > most;
  return h('div', { class: 'source' },
    h('pre', { tabindex: '0', role: 'region', 'aria-label': label }, cut ? text.slice(0, most) : text),
    cut && h('p', { class: 'small' }, `The first ${count(most)} of ${count(text.length)} characters.`));
}

/** How much of a limit is taken. */
export function bar(used, most) {
  const share = most > 0 ? Math.min(1, used / most) : 0;
  return h('svg', { class: 'bar', viewBox: '0 0 100 6', preserveAspectRatio: 'none', 'aria-hidden': 'true' },
    h('rect', { class: 'track', width: 100, height: 6, rx: 3 }),
    h('rect', { class: share >= 1 ? 'full' : 'part', width: share * 100, height: 6, rx: 3 }));
}

/** The last minutes of a rate, with what is allowed as a dashed line. The figures beside it say the same. */
export function sparkline(samples, allowed, points = 60) {
  const most = Math.max(allowed ?? 0, ...samples, 0.001) * 1.15;
  const y = value => (28 - (value / most) * 26).toFixed(1);
  const x = at => (((at + points - samples.length) / (points - 1)) * 120).toFixed(1);
  const line = samples.map((value, at) => `${x(at)},${y(value)}`).join(' ');
  return h('svg', { class: 'spark', viewBox: '0 0 120 30', preserveAspectRatio: 'none', 'aria-hidden': 'true' },
    h('line', { class: 'floor', x1: 0, x2: 120, y1: 28, y2: 28 }),
    allowed && h('line', { class: 'allowed', x1: 0, x2: 120, y1: y(allowed), y2: y(allowed) }),
    samples.length > 1 && h('polyline', { class: 'achieved', points: line }));
}

/** Newer and older, where there are. `trail` holds the cursors that led here. */
export function pages(trail, next, go) {
  if (trail.length === 0 && !next) return null;
  return h('nav', { class: 'pages', 'aria-label': 'Pages' },
    button('Newer', () => go(trail.slice(0, -1)), '', { disabled: trail.length === 0 }),
    h('span', null, `Page ${trail.length + 1}`),
    button('Older', () => go([...trail, next]), '', { disabled: !next }));
}

/** A form whose fields are a filter; it holds as soon as one is changed. */
export function filters(label, values, change, ...fields) {
  const apply = event => {
    event.preventDefault();
    const given = Object.fromEntries(new FormData(event.currentTarget));
    change(Object.fromEntries(Object.entries(given).map(([name, value]) => [name, value.trim()])));
  };
  return h('form', { class: 'filters', role: 'search', 'aria-label': label, onsubmit: apply, onchange: apply }, fields,
    Object.values(values).some(Boolean) && button('Clear', () => change({}), 'quiet'));
}

export function input(name, value, more = {}) {
  return h('input', { name, value: value ?? '', type: 'text', autocomplete: 'off', autocapitalize: 'off', spellcheck: 'false', ...more });
}

/** Where a job, or what became of it, is looked at. Ids are unique within their tenant only. */
export function path(view, id, tenant) {
  return `#/${view}/${encodeURIComponent(id)}?tenant=${encodeURIComponent(tenant ?? '')}`;
}

export function link(view, id, tenant) {
  return h('a', { href: path(view, id, tenant), class: 'id' }, id);
}

/** Attempts in their order, those of several runs apart. */
export function attempts(of) {
  if (of.length === 0) return h('p', { class: 'empty' }, 'No attempt yet.');
  return h('ol', { class: 'timeline' }, of.map(attempt => h('li', { class: wasFine(attempt) ? 'ok' : 'bad' },
    h('div', { class: 'timeline-head' },
      icon(wasFine(attempt) ? 'ok' : 'bad'),
      h('strong', null, attempt.outcome ? words(attempt.outcome) : wasFine(attempt) ? 'delivered' : 'failed'),
      h('span', null, attempt.status ? `HTTP ${attempt.status}` : 'no answer'),
      attempt.key && h('span', null, 'key ', h('code', null, attempt.key)),
      h('span', null, `${count(attempt.latency_ms)} ms`),
      h('span', { class: 'small' }, [attempt.run && `run ${attempt.run}`, `attempt ${attempt.n}`].filter(Boolean).join(', '), ' · ', when(attempt.at))),
    attempt.error && h('p', { class: 'said' }, attempt.error))));
}

function wasFine(attempt) {
  return attempt.outcome ? attempt.outcome === 'success' : attempt.status >= 200 && attempt.status < 300;
}
