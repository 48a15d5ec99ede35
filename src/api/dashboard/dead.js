// Dead letters: why calls were given up, and the ways to run them again or to be rid of them.

import { Problem, api } from './api.js';
import { ask, say } from './dialog.js';
import { h } from './dom.js';
import { bytes, count, none, words } from './format.js';
import { attempts, badge, button, choice, facts, field, filters, input, link, pages, path, source, table, when } from './parts.js';
import { member, pretty } from './json.js';
import { address } from './jobs.js';

/** What each reason asks for. */
const THEN = {
  attempts_exhausted: 'The provider failed too often. Replay it when the provider is well.',
  permanent: 'The provider refused the call. Correct the request, then replay it.',
  outcome_unknown: 'It may have been executed. Look at the provider first; replay it on purpose.',
  gave_up: 'It waited longer than its retry policy allows: no key, or no slot.',
  impossible: 'Its cost is more than a limit ever allows. Replay it with another request, or raise the limit.',
  conflict: 'Another job has its id: a mistake of its producer.',
  malformed: 'It is no job. Correct it and publish it again.',
  unroutable: 'No provider of that name. Correct it and publish it again, or configure the provider.',
  rejected: 'The broker gave it up, or the database cannot keep it. Correct it and publish it again.',
};
const REASONS = Object.keys(THEN);
/** Of a message that is no job, decoded, in bytes. */
const RAW_MAX = 64 * 1024;

export default function dead(route, page) {
  return route.parts.length > 0 ? one(route, page) : list(route, page);
}

function list(route, page) {
  // Those that were replayed are history: shown where they are asked for.
  const filter = { replayed: 'false', ...route.query };
  const query = Object.fromEntries(Object.entries(filter).filter(([name, value]) => !(name === 'replayed' && value === 'any')));
  let trail = [];
  let items = null;
  let next = null;
  let replays = [];

  async function load(signal) {
    const [answer, running] = await Promise.all([
      api.get(['dead-letters'], { signal, query: { limit: 50, cursor: trail.at(-1), ...query } }),
      api.get(['replays'], { signal, query: { limit: 5 } }),
    ]);
    [items, next] = [answer.items, answer.next_cursor];
    // What has ended stays in sight for a while.
    replays = running.items.filter(replay => replay.state === 'running' || Date.now() - Date.parse(replay.finished_at) < 120_000);
  }

  /** The filter as the API takes it. */
  const order = () => ({ where: { ...query, replayed: query.replayed === 'true' } });

  const told = () => Object.entries(query)
    .map(([name, value]) => (name === 'replayed' ? (value === 'true' ? 'replayed already' : 'not replayed yet') : `${name} ${words(value)}`)).join(', ');

  async function counted(what) {
    try {
      const { total } = await api.post(['replays'], { ...order(), dry_run: true });
      return total;
    } catch (error) {
      say(`${what} is not possible: ${error.document?.detail ?? error.message}`);
      return null;
    }
  }

  async function replayMany() {
    const total = await counted('Replay');
    if (total === null) return;
    ask({
      title: `Replay ${count(total)} dead letters?`,
      about: [h('p', null, h('strong', null, count(total)), ` dead letters: ${told()}.`), h('p', null, 'They run again a few at a time, in the lane replay, which gives way to live traffic. It goes on through restarts and can be stopped.')],
      confirm: 'Replay them',
      act: async () => {
        await api.post(['replays'], order());
        page.refresh();
        return 'The replay has begun';
      },
    });
  }

  async function purge() {
    const total = await counted('Purge');
    if (total === null) return;
    ask({
      title: `Remove ${count(total)} dead letters for good?`,
      about: [h('p', null, h('strong', null, count(total)), ` dead letters: ${told()}.`), h('p', null, 'Their envelopes and attempts are gone afterwards. This cannot be taken back.')],
      confirm: 'Remove them', danger: true, word: 'purge',
      act: async () => {
        let purged = 0;
        for (let more = true; more;) {
          const done = await api.delete(['dead-letters'], { query });
          purged += done.purged;
          more = done.more;
        }
        page.refresh();
        return `${count(purged)} dead letters are removed`;
      },
    });
  }

  const stop = replay => ask({
    title: 'Stop this replay?', about: h('p', null, 'What it has queued again stays queued.'), confirm: 'Stop it', danger: true,
    act: async () => {
      await api.delete(['replays', replay.id]);
      page.refresh();
      return 'The replay is stopped';
    },
  });

  function progress(replay) {
    const done = replay.replayed + replay.skipped;
    return h('li', { key: replay.id }, badge(replay.state),
      h('progress', { max: Math.max(replay.total, 1), value: replay.state === 'done' ? Math.max(replay.total, 1) : done, 'aria-label': `Replay ${replay.id}` }),
      h('span', null, `${count(replay.replayed)} of ${count(replay.total)} replayed`, replay.skipped > 0 && `, ${count(replay.skipped)} skipped`),
      replay.state === 'running' && button('Stop', () => stop(replay), 'small-button'));
  }

  const row = letter => ({
    key: `${letter.tenant} ${letter.id} ${letter.dead_at}`,
    cells: [link('dead', letter.id, letter.tenant), badge(letter.reason, 'bad'), letter.provider ?? none, letter.tenant ?? none,
      h('span', { class: 'clip' }, letter.error), count(letter.attempts.length), when(letter.dead_at), letter.replayed_at ? when(letter.replayed_at) : none],
  });

  function draw() {
    if (items === null) return null;
    return [
      filters('Filter dead letters', route.query, values => {
        location.hash = address('dead', { ...values, replayed: values.replayed === 'false' ? undefined : values.replayed });
      },
        field('Reason', choice('reason', filter.reason ?? '', [['', 'any'], ...REASONS])),
        field('Provider', input('provider', filter.provider)),
        field('Lane', input('lane', filter.lane)),
        field('Tenant', input('tenant', filter.tenant)),
        field('Replayed', choice('replayed', filter.replayed, [['false', 'not yet'], ['true', 'already'], ['any', 'both']]))),
      replays.length > 0 && h('ul', { class: 'progress', 'aria-label': 'Replays by filter' }, replays.map(progress)),
      items.length > 0 && h('div', { class: 'bar-of-section' }, filter.reason && h('span', null, THEN[filter.reason]),
        // Both would be of another number than what is counted first.
        query.replayed !== undefined && h('span', { class: 'row-actions' }, button('Replay these…', replayMany), button('Purge these…', purge, 'danger'))),
      table('Dead letters', [['Job', 'ids'], ['Reason'], ['Provider', 'named'], ['Tenant'], ['Error', 'wide'], ['Attempts', 'num'], ['Dead', 'num'], ['Replayed', 'num']], items.map(row),
        Object.keys(route.query).length > 0 ? 'No dead letter fits.' : 'No dead letter. Calls that are refused for good, or have failed too often, come here with everything that is known of them.'),
      pages(trail, next, to => { trail = to; page.refresh(); }),
    ];
  }

  return { title: 'Dead letters', everyMs: 3000, follow: { event: 'job.dead' }, load, draw };
}

/** A message that never was a job, as text. */
function decoded(base64) {
  const most = Math.floor(RAW_MAX / 3) * 4;
  const binary = atob(base64.slice(0, most));
  const text = new TextDecoder().decode(Uint8Array.from(binary, char => char.charCodeAt(0)));
  return { text, isCut: base64.length > most, size: Math.floor((base64.replace(/=+$/, '').length * 3) / 4) };
}

function one(route, page) {
  const [id] = route.parts;
  const query = route.query.tenant === undefined ? {} : { tenant: route.query.tenant };
  let letter = null;
  let envelope = null;
  let headers = null;

  async function load(signal) {
    // As text, too: an edited request must not be rounded by this browser.
    const text = await api.text(['dead-letters', id], { signal, query });
    letter = JSON.parse(text);
    envelope = letter.envelope === null ? null : member(text, 'envelope');
    headers = letter.headers === null ? null : member(text, 'headers');
  }

  function replay() {
    const request = pretty(member(envelope, 'request') ?? '{}');
    ask({
      title: `Replay ${id}?`,
      about: h('p', null, 'A new run of the same job, checked against what is configured now. What you leave as it is stays as it was.'),
      fields: [
        field('Request', h('textarea', { name: 'request', rows: Math.min(16, request.split('\n').length + 1), spellcheck: 'false', value: request })),
        h('div', { class: 'columns' },
          field('Lane', input('lane', '', { placeholder: 'replay' }), 'The lane replay gives way to live traffic.'),
          field('Not before', h('input', { name: 'not_before', type: 'datetime-local' }), 'In your time zone.'),
          field('Idempotency key', choice('idempotency_key', '', [['', 'as fits'], ['keep', 'the same'], ['new', 'a new one']]), 'As fits: the same only where the outcome is unknown and nothing is edited.')),
      ],
      confirm: 'Replay',
      act: async form => {
        await api.post(['dead-letters', id, 'replay'], changes(form, request), { query });
        page.refresh();
        return `${id} runs again`;
      },
    });
  }

  function ofMessage() {
    if (envelope !== null) return h('section', null, h('h2', null, 'Envelope'), source(pretty(envelope), 'The job as it was taken in'));
    if (letter.raw === null) return null;
    const raw = decoded(letter.raw);
    return h('section', null, h('h2', null, 'Message'),
      h('p', { class: 'small' }, `${bytes(raw.size)}, kept byte for byte${raw.isCut ? `; the first ${bytes(RAW_MAX)} are shown` : ''}.`),
      source(raw.text, 'The message as it came'),
      headers && [h('h3', null, 'Properties and headers'), source(pretty(headers), 'Properties and headers')]);
  }

  function draw() {
    if (letter === null) return null;
    return [
      h('div', { class: 'bar-of-section' }, badge(letter.reason, 'bad'), h('span', null, THEN[letter.reason]),
        h('span', { class: 'row-actions' }, envelope !== null && letter.replayed_at === null && button('Replay…', replay, 'primary'),
          envelope !== null && h('a', { class: 'button', href: path('jobs', letter.id, letter.tenant) }, 'The job'))),
      letter.error && letter.attempts.length === 0 && h('p', { class: 'said' }, letter.error),
      facts(['Provider', letter.provider], ['Lane', letter.lane], ['Tenant', letter.tenant], ['Dead', when(letter.dead_at)], ['Replayed', letter.replayed_at && when(letter.replayed_at)]),
      h('section', null, h('h2', null, 'Attempts'), attempts(letter.attempts)),
      ofMessage(),
    ];
  }

  return { title: id, back: ['#/dead', 'Dead letters'], everyMs: 5000, load, draw };
}

/** The body of a replay: only what was changed, the request as it was typed. */
function changes(form, was) {
  const parts = [];
  if (form.request.trim() !== was.trim()) {
    try {
      JSON.parse(form.request);
    } catch (error) {
      throw new Problem(0, { title: 'The request is no JSON', detail: error.message });
    }
    parts.push(`"request": ${form.request}`);
  }
  if (form.lane.trim() !== '') parts.push(`"lane": ${JSON.stringify(form.lane.trim())}`);
  if (form.not_before !== '') parts.push(`"not_before": ${JSON.stringify(new Date(form.not_before).toISOString())}`);
  if (form.idempotency_key !== '') parts.push(`"idempotency_key": ${JSON.stringify(form.idempotency_key)}`);
  return `{${parts.join(', ')}}`;
}
