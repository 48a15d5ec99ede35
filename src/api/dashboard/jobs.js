// Jobs: a filtered list, and one job with its attempts and its result.

import { Problem, api, fetchPath, problemOf } from './api.js';
import { ask } from './dialog.js';
import { h } from './dom.js';
import { bytes, count, none, words } from './format.js';
import { attempts, badge, button, choice, facts, field, filters, input, link, pages, path, source, table, trouble, when } from './parts.js';
import { member, pretty } from './json.js';
import { firstJob } from './overview.js';

const STATES = ['queued', 'waiting', 'running', 'succeeded', 'dead', 'expired', 'cancelled'];
/** Of a result, in bytes. */
const SHOWN_MAX = 256 * 1024;

/** A filter as an address, so that it can be kept and sent to a colleague. */
export function address(view, values) {
  const query = new URLSearchParams(Object.entries(values).filter(([, value]) => value !== '' && value !== undefined));
  return `#/${view}${query.size > 0 ? `?${query}` : ''}`;
}

export default function jobs(route, page) {
  return route.parts.length > 0 ? one(route, page) : list(route, page);
}

function list(route, page) {
  const filter = route.query;
  let trail = [];
  let items = null;
  let next = null;

  async function load(signal) {
    const query = { limit: 50, cursor: trail.at(-1), ...filter };
    const answer = await api.get(['jobs'], { signal, query });
    [items, next] = [answer.items, answer.next_cursor];
  }

  const go = to => { trail = to; page.refresh(); };

  const find = event => {
    event.preventDefault();
    const id = new FormData(event.currentTarget).get('id').trim();
    if (id !== '') location.hash = `#/jobs/${encodeURIComponent(id)}`;
  };

  function row(job) {
    const why = job.waiting_for ? [words(job.waiting_for.reason), job.waiting_for.until && [', ', when(job.waiting_for.until)]] : job.reason ? words(job.reason) : null;
    return {
      key: `${job.tenant} ${job.id}`,
      cells: [link('jobs', job.id, job.tenant), [badge(job.state), why && h('span', { class: 'small' }, ' ', why)],
        job.provider, job.lane, job.tenant ?? none, count(job.attempts.length), when(job.created_at), when(job.finished_at)],
    };
  }

  function draw() {
    const isFiltered = Object.keys(filter).length > 0;
    return [
      h('div', { class: 'beside' },
        filters('Filter jobs', filter, values => { location.hash = address('jobs', values); },
          field('State', choice('state', filter.state ?? '', [['', 'any'], ...STATES])),
          field('Provider', input('provider', filter.provider)),
          field('Lane', input('lane', filter.lane)),
          field('Tenant', input('tenant', filter.tenant))),
        h('form', { class: 'filters', role: 'search', 'aria-label': 'Find a job', onsubmit: find },
          field('Job id', input('id', '', { placeholder: 'order-17' })), h('button', { type: 'submit' }, 'Find'))),
      items && (items.length === 0 && !isFiltered && trail.length === 0 ? firstJob() : [
        table('Jobs', [['Job', 'ids'], ['State'], ['Provider', 'named'], ['Lane'], ['Tenant'], ['Attempts', 'num'], ['Accepted', 'num'], ['Ended', 'num']], items.map(row),
          'No job fits. One that still lies in the broker is unknown until a dispatcher takes it.'),
        pages(trail, next, go)]),
    ];
  }

  return { title: 'Jobs', everyMs: 3000, load, draw };
}

/** The beginning of a result as text, however long it is. */
async function result(id, query, signal) {
  const response = await fetchPath('GET', ['v1', 'jobs', id, 'result'], { query, signal });
  if (!response.ok) throw problemOf(response, await response.text());
  const reader = response.body.getReader();
  const parts = [];
  let size = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    size += value.length;
    if (size >= SHOWN_MAX) {
      await reader.cancel();
      break;
    }
  }
  const text = await new Blob(parts).slice(0, SHOWN_MAX).text();
  return {
    text, isCut: size >= SHOWN_MAX, isTruncated: response.headers.get('paceline-truncated') === 'true',
    status: response.headers.get('paceline-provider-status'), type: response.headers.get('content-type'),
  };
}

function one(route, page) {
  const [id] = route.parts;
  const query = route.query.tenant === undefined ? {} : { tenant: route.query.tenant };
  let job = null;
  let metadata = null;
  let body = null;
  let failed = null;

  async function load(signal) {
    const text = await api.text(['jobs', id], { signal, query });
    job = JSON.parse(text);
    metadata = job.metadata === null ? null : member(text, 'metadata');
  }

  async function open() {
    failed = null;
    try {
      body = await result(id, query);
    } catch (error) {
      failed = error instanceof Problem ? error : new Problem(0, { title: 'The result cannot be read', detail: String(error) });
    }
    page.draw();
  }

  function cancel() {
    return button('Cancel the job', () => ask({
      title: `Cancel ${id}?`, about: h('p', null, 'It ends as cancelled and is not sent. This cannot be taken back.'),
      confirm: 'Cancel the job', danger: true,
      act: async () => {
        await api.delete(['jobs', id], { query });
        page.refresh();
        return `${id} is cancelled`;
      },
    }), 'danger');
  }

  function ofResult() {
    if (body === null) return [button('Show the result', open), failed && trouble(failed)];
    const about = [`HTTP ${body.status}`, body.type, body.isCut && `the first ${bytes(SHOWN_MAX)}`, body.isTruncated && 'only the beginning was kept'];
    return [h('p', { class: 'small' }, about.filter(Boolean).join(' · ')), body.text === '' ? h('p', { class: 'empty' }, 'An empty body.') : source(body.text, 'The provider’s answer', SHOWN_MAX)];
  }

  function draw() {
    if (job === null) return null;
    const waits = job.waiting_for;
    return [
      h('div', { class: 'bar-of-section' }, badge(job.state),
        waits && h('span', null, words(waits.reason), waits.until && [', ', when(waits.until)]),
        h('span', { class: 'row-actions' },
          job.state === 'dead' && h('a', { class: 'button', href: path('dead', job.id, job.tenant) }, 'Replay…'),
          (job.state === 'queued' || job.state === 'waiting') && cancel())),
      job.error && job.attempts.length === 0 && h('p', { class: 'said' }, job.error),
      facts(
        ['Provider', h('a', { href: `#/providers/${encodeURIComponent(job.provider)}` }, job.provider)], ['Lane', job.lane], ['Tenant', job.tenant],
        ['Run', count(job.run)], ['Reason', job.reason && words(job.reason)], ['Created', when(job.created_at)],
        ['Ended', job.finished_at && when(job.finished_at)], ['Next attempt', job.next_attempt_at && when(job.next_attempt_at)]),
      metadata !== null && h('section', null, h('h2', null, 'Metadata'), source(pretty(metadata), 'Metadata')),
      h('section', null, h('h2', null, 'Attempts'), attempts(job.attempts)),
      h('section', null, h('h2', null, 'Result'), ofResult()),
    ];
  }

  return { title: id, back: ['#/jobs', 'Jobs'], everyMs: 2000, load, draw };
}
