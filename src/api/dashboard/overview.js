// Every provider at a glance, and above them what needs somebody.

import { api } from './api.js';
import { h } from './dom.js';
import { count, fromNow, none, percent, rate, words } from './format.js';
import { badge, button, icon, input, link, sparkline, table, trouble, when } from './parts.js';

/** Samples of a rate that are kept, of so many providers. */
const SAMPLES_MAX = 60;
const PROVIDERS_MAX = 500;
/** Rows of a page. */
const ROWS = 50;
/** A dispatcher tells every second or so; with very many keys less often. */
const SILENT_MS = 60_000;
/** The count of 429s never falls: only what is new needs somebody. */
const NEWS_MS = 300_000;

const seen = new Map();

/** Keeps what was seen of each provider: its rates, for the line that shows them, and when its 429s last rose. */
export function remember(providers) {
  for (const { name, achieved_per_second, pacing_errors } of providers.slice(0, PROVIDERS_MAX)) {
    const { rates = [], errors = pacing_errors, roseAt = null } = seen.get(name) ?? {};
    seen.set(name, {
      rates: [...rates, achieved_per_second].slice(-SAMPLES_MAX),
      errors: pacing_errors,
      roseAt: pacing_errors > errors ? Date.now() : roseAt,
    });
  }
}

export function seenRates(name) {
  return seen.get(name)?.rates ?? [];
}

export function queued(provider, state) {
  return provider.queue === null ? null : provider.queue.reduce((sum, lane) => sum + lane[state], 0);
}

/** The earliest next slot of all budgets. */
export function nextSlot(provider) {
  const known = provider.budgets.map(budget => budget.next_slot_at).filter(Boolean).sort();
  return known[0] ?? null;
}

/** When it is; one that has passed is there. */
export function slotIn(at) {
  return at === null ? none : Date.parse(at) <= Date.now() ? 'now' : fromNow(at);
}

/** What a part of the process that is not well means, and what to do. */
const PARTS = {
  store: {
    starting: 'The database was not reached yet. The log says what is wrong; no restart is needed.',
    failed: 'The database does not answer, or is read-only or full: nothing new is accepted or sent. Repair the database; no restart is needed.',
  },
  queue: {
    starting: 'RabbitMQ was not reached yet. The log says what is wrong; no restart is needed.',
    failed: 'RabbitMQ does not answer, or refuses. Jobs wait in the broker, those in the store go on. Repair the broker; no restart is needed.',
  },
};

/** What needs somebody, the worst first: `{kind, title, text, href}`. */
export function needs(ready, providers) {
  const red = Object.entries(ready?.parts ?? {}).filter(([, part]) => part.state !== 'ok').map(([name, part]) => ({
    kind: 'bad', key: `part ${name}`, title: `${name} is ${part.state}`,
    text: PARTS[name]?.[part.state] ?? 'The log of this process says why.', said: part.error,
  }));
  return [...red, ...(providers ?? []).flatMap(ofProvider)].sort((a, b) => (a.kind === 'bad' ? 0 : 1) - (b.kind === 'bad' ? 0 : 1));
}

function ofProvider(provider) {
  const found = [];
  const need = (kind, what, text) =>
    found.push({ kind, key: `${provider.name} ${what}`, what, title: `${provider.name}: ${what}`, text, href: `#/providers/${provider.name}` });
  const told = provider.reports.some(report => report.age_ms < SILENT_MS);
  if (!told) need('bad', 'no dispatcher tells of it', 'Nothing is sent. Is a process with the role dispatcher running, and can it reach the database?');
  if (provider.breaker === 'open') need('bad', 'breaker open', 'Most calls failed: its jobs wait, and a few probes find out when it is back. Look at the provider; nothing has to be done here.');
  if (provider.state === 'paused') {
    const by = [provider.paused_by && `by ${provider.paused_by}`, provider.paused_at && fromNow(provider.paused_at)].filter(Boolean).join(' ');
    need('warn', 'paused', `Its jobs wait until somebody resumes it. It was paused ${by}.`);
  }
  const keys = provider.keys;
  if (keys.refused) need('bad', `${count(keys.refused)} ${keys.refused === 1 ? 'key' : 'keys'} refused`, 'The provider refuses the credential. Replace the secret, or enable the key again if it was the provider’s mistake.');
  if (keys.missing || keys.removed) need('warn', 'keys without a secret', 'Store their secrets: paceline keys add.');
  const parked = provider.budgets.filter(budget => budget.state === 'parked').length;
  if (parked) need('warn', `${count(parked)} ${parked === 1 ? 'budget' : 'budgets'} parked`, 'The provider says that a quota is used up. Wait, or raise the quota and resume the budget.');
  if (Date.now() - (seen.get(provider.name)?.roseAt ?? 0) < NEWS_MS) need('warn', 'answers 429 in spite of a permit', 'If it goes on: somebody else uses the key, or a limit is declared higher than the provider counts.');
  return found;
}

function needed(list) {
  const worst = list.some(need => need.kind === 'bad') ? 'bad' : list.length ? 'warn' : 'ok';
  const title = list.length === 0 ? 'Everything works' : `${list.length} ${list.length === 1 ? 'thing needs' : 'things need'} a look`;
  return h('section', { class: `needs ${worst}`, 'aria-labelledby': 'needs' },
    h('h2', { id: 'needs', 'aria-live': 'polite' }, icon(worst), title),
    list.length > 0 && h('ul', null, list.slice(0, 20).map(need => h('li', { key: need.key },
      icon(need.kind), h('div', null,
        need.href ? h('a', { href: need.href }, need.title) : h('strong', null, need.title),
        h('p', null, need.text), need.said && h('p', { class: 'said' }, need.said))))),
    list.length > 20 && h('p', { class: 'small' }, `and ${count(list.length - 20)} more`));
}

export function breaker(provider) {
  return badge(`breaker ${words(provider.breaker)}`, { open: 'bad', closed: 'ok' }[provider.breaker] ?? 'busy');
}

const COLUMNS = [['Provider'], ['State'], ['Calls/s', 'num'], ['Allowed/s', 'num'], ['Last minutes', 'wide'], ['Used', 'num'], ['Queued', 'num'], ['Waiting', 'num'], ['Running', 'num'], ['429s', 'num'], ['Next slot', 'num']];

function row(provider) {
  const slot = nextSlot(provider);
  return {
    key: provider.name,
    cells: [
      h('a', { href: `#/providers/${provider.name}`, class: 'name' }, provider.name),
      h('span', { class: 'badges' }, (provider.state !== 'open' || provider.breaker === 'closed') && badge(provider.state), provider.breaker !== 'closed' && breaker(provider)),
      rate(provider.achieved_per_second),
      provider.allowed_per_second === null ? 'no limit' : rate(provider.allowed_per_second),
      sparkline(seenRates(provider.name), provider.allowed_per_second, SAMPLES_MAX),
      percent(provider.utilisation),
      count(queued(provider, 'queued')),
      count(queued(provider, 'waiting')),
      count(queued(provider, 'running')),
      h('span', { class: provider.pacing_errors > 0 ? 'badge warn' : null }, provider.pacing_errors > 0 && icon('warn'), count(provider.pacing_errors)),
      slotIn(slot),
    ],
  };
}

/** What to do where nothing has happened yet. */
export function firstJob(provider) {
  const name = provider ?? 'geocoder';
  const body = `{"id": "first-1", "provider": "${name}", "request": {"path": "/"}}`;
  return h('section', { class: 'empty teach' }, h('h2', null, 'No job yet'),
    h('p', null, 'Hand over the first one. Sent again under the same id it is the same job, so a doubt costs nothing.'),
    h('pre', { tabindex: '0', role: 'region', 'aria-label': 'A command that enqueues a job' },
      `curl -s ${location.origin}/v1/jobs -H 'content-type: application/json' \\\n  -d '${body}'`),
    h('p', { class: 'small' }, 'With tokens configured, add  -H "authorization: Bearer $TOKEN".  Over RabbitMQ: publish it to the exchange paceline.jobs with the routing key ', h('code', null, name), '.'));
}

export default function overview(route, page) {
  let ready = null;
  let providers = null;
  let refused = null;
  let dead = null;
  // Not known yet; once there is a job it is false for good.
  let isEmpty = null;
  let name = '';
  let from = 0;

  async function load(signal) {
    const options = { signal };
    // What one token may not see must not hide the rest.
    const allowed = promise => promise.catch(error => { if (error.status === 403) return error; throw error; });
    ready = await api.ready(signal);
    const [listed, letters] = await Promise.all([
      allowed(api.get(['providers'], options)),
      allowed(api.get(['dead-letters'], { ...options, query: { replayed: false, limit: 5 } })),
    ]);
    refused = listed.items ? null : listed;
    providers = listed.items ?? null;
    dead = letters.items ?? null;
    remember(providers ?? []);
    const idle = providers?.every(provider => ['queued', 'waiting', 'running'].every(state => !queued(provider, state)));
    if (isEmpty === false) return;
    isEmpty = Boolean(idle && dead?.length === 0 && (await api.get(['jobs'], { ...options, query: { limit: 1 } })).items.length === 0);
  }

  function listed() {
    const fits = providers.filter(provider => provider.name.includes(name));
    const shown = fits.slice(from, from + ROWS);
    const empty = providers.length === 0
      ? ['No provider is configured. ', h('code', null, '[[provider]]'), ' in paceline.toml declares one.'] : 'No provider of that name.';
    return h('section', null, h('div', { class: 'bar-of-section' }, h('h2', null, 'Providers'),
      providers.length > 10 && h('label', { class: 'find' }, h('span', { class: 'unseen' }, 'Find a provider'),
        input('name', name, { placeholder: 'Find', oninput: event => { name = event.currentTarget.value.trim(); from = 0; page.draw(); } }))),
      table('Providers', COLUMNS, shown.map(row), empty),
      fits.length > ROWS && h('nav', { class: 'pages', 'aria-label': 'Pages of providers' },
        button('Previous', () => { from -= ROWS; page.draw(); }, '', { disabled: from === 0 }),
        h('span', null, `${from + 1}–${from + shown.length} of ${fits.length}`),
        button('Next', () => { from += ROWS; page.draw(); }, '', { disabled: from + ROWS >= fits.length })));
  }

  function draw() {
    if (ready === null) return null;
    return [
      needed(needs(ready, providers)),
      refused && [h('h2', null, 'Providers'), trouble(refused), h('p', { class: 'small' }, 'The other views show what this token may see.')],
      providers && listed(),
      isEmpty && firstJob(providers[0]?.name),
      dead?.length > 0 && h('section', null,
        h('div', { class: 'bar-of-section' }, h('h2', null, 'Latest dead letters'), h('a', { href: '#/dead' }, 'All of them')),
        table('Latest dead letters', [['Job', 'ids'], ['Reason'], ['Provider', 'named'], ['Error', 'wide'], ['When', 'num']], dead.map(letter => ({
          key: letter.id + letter.dead_at,
          cells: [link('dead', letter.id, letter.tenant), badge(letter.reason, 'bad'), letter.provider ?? none, h('span', { class: 'clip' }, letter.error), when(letter.dead_at)],
        })))),
    ];
  }

  return { title: 'Overview', everyMs: 2000, follow: { event: 'job.dead' }, load, draw };
}
