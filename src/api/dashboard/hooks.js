// Webhooks: the endpoints that completions go to, and what became of each delivery.

import { api } from './api.js';
import { ask } from './dialog.js';
import { h } from './dom.js';
import { count, none, words } from './format.js';
import { attempts, badge, button, choice, facts, field, filters, input, link, pages, table, when } from './parts.js';
import { address } from './jobs.js';

const STATES = ['pending', 'delivered', 'failed', 'disabled'];
const EVENTS = ['job.succeeded', 'job.dead', 'job.expired', 'job.cancelled', 'endpoint.test'];

export default function hooks(route, page) {
  return route.parts.length > 0 ? one(route, page) : list(route, page);
}

function list(route, page) {
  const filter = route.query;
  let endpoints = null;
  let endpointTrail = [];
  let endpointNext = null;
  let deliveries = null;
  let trail = [];
  let next = null;

  async function load(signal) {
    const [known, sent] = await Promise.all([
      api.get(['endpoints'], { signal, query: { limit: 20, cursor: endpointTrail.at(-1) } }),
      api.get(['deliveries'], { signal, query: { limit: 30, cursor: trail.at(-1), ...filter } }),
    ]);
    [endpoints, endpointNext] = [known.items, known.next_cursor];
    [deliveries, next] = [sent.items, sent.next_cursor];
  }

  const act = (endpoint, what, said) => async () => {
    await api.post(['endpoints', endpoint.id, what], {});
    page.refresh();
    return said;
  };
  const url = endpoint => h('p', null, h('code', { class: 'url' }, endpoint.url));

  const enable = endpoint => ask({
    title: 'Enable this endpoint?', about: [url(endpoint), h('p', null, 'It gets completions again. What was held back meanwhile is sent by a resend.')],
    confirm: 'Enable', act: act(endpoint, 'enable', 'The endpoint is enabled'),
  });
  const disable = endpoint => ask({
    title: 'Disable this endpoint?', about: [url(endpoint), h('p', null, 'Nothing is sent to it any more; its deliveries are held back.')],
    confirm: 'Disable', danger: true, act: act(endpoint, 'disable', 'The endpoint is disabled'),
  });
  const test = endpoint => ask({
    title: 'Send a test event?', about: [url(endpoint), h('p', null, 'A signed event of the type endpoint.test. What became of it is shown.')],
    confirm: 'Send it',
    act: async () => {
      const delivery = await api.post(['endpoints', endpoint.id, 'test'], {});
      location.hash = `#/webhooks/${encodeURIComponent(delivery.id)}`;
      return 'The test event is on its way';
    },
  });
  const resend = endpoint => ask({
    title: 'Send again what it missed?', about: [url(endpoint), h('p', null, 'Deliveries that failed or were held back since then, in the background, each under the event id that it had.')],
    fields: field('Since', h('input', { name: 'since', type: 'datetime-local', required: true }), 'In your time zone.'),
    confirm: 'Send again',
    act: async form => {
      await api.post(['endpoints', endpoint.id, 'resend'], { since: new Date(form.since).toISOString() });
      page.refresh();
      return 'The resend has begun';
    },
  });

  function ofEndpoint(endpoint) {
    const label = verb => ({ 'aria-label': `${verb} ${endpoint.url}` });
    const again = endpoint.resend;
    return {
      key: endpoint.id,
      cells: [
        [h('code', { class: 'url' }, endpoint.url), endpoint.description && h('p', { class: 'small' }, endpoint.description)],
        [badge(standing(endpoint)),
          endpoint.disabled_reason && h('p', { class: 'small' }, endpoint.disabled_reason),
          endpoint.failing_since && h('p', { class: 'small' }, 'first failed ', when(endpoint.failing_since)),
          again?.state === 'running' && h('p', { class: 'small' }, `resend: ${count(again.resent)} so far`)],
        endpoint.tenant ?? none,
        endpoint.implicit ? 'of callbacks' : endpoint.events?.join(', ') ?? 'all',
        h('span', { class: 'row-actions' },
          h('a', { class: 'button small-button', href: address('webhooks', { endpoint: endpoint.id }), ...label('Deliveries to') }, 'Deliveries'),
          endpoint.enabled && button('Test', () => test(endpoint), 'small-button', label('Test')),
          endpoint.enabled && button('Resend…', () => resend(endpoint), 'small-button', label('Resend to')),
          endpoint.enabled ? button('Disable', () => disable(endpoint), 'small-button', label('Disable')) : button('Enable', () => enable(endpoint), 'small-button', label('Enable'))),
      ],
    };
  }

  const ofDelivery = delivery => ({
    key: delivery.id,
    cells: [
      h('a', { class: 'id', href: `#/webhooks/${encodeURIComponent(delivery.id)}` }, delivery.id),
      badge(delivery.state), delivery.event,
      delivery.job_id ? link('jobs', delivery.job_id, delivery.tenant) : none,
      h('code', { class: 'url clip' }, delivery.endpoint?.url ?? delivery.reply_to ?? 'RabbitMQ'),
      count(delivery.attempts.length), lastly(delivery.attempts.at(-1)), when(delivery.finished_at ?? delivery.created_at),
    ],
  });

  function draw() {
    if (endpoints === null) return null;
    const isFiltered = Object.keys(filter).length > 0;
    const teach = ['No endpoint. Jobs name a ', h('code', null, 'callback'), ', or ', h('code', null, 'paceline endpoints add https…'), ' registers one for all completions.'];
    return [
      h('section', null, h('h2', null, 'Endpoints'),
        table('Endpoints', [['URL', 'wide'], ['State'], ['Tenant'], ['Events'], ['', 'acts']], endpoints.map(ofEndpoint), teach),
        pages(endpointTrail, endpointNext, to => { endpointTrail = to; page.refresh(); })),
      h('section', null, h('h2', null, 'Deliveries'),
        filters('Filter deliveries', filter, values => { location.hash = address('webhooks', values); },
          field('State', choice('state', filter.state ?? '', [['', 'any'], ...STATES])),
          field('Event', choice('event', filter.event ?? '', [['', 'any'], ...EVENTS])),
          field('Endpoint', input('endpoint', filter.endpoint, { placeholder: 'ep_…' })),
          field('Job id', input('job', filter.job)),
          field('Tenant', input('tenant', filter.tenant))),
        table('Deliveries', [['Delivery'], ['State'], ['Event', 'word'], ['Job', 'ids'], ['To', 'wide'], ['Attempts', 'num'], ['Last', ''], ['When', 'num']], deliveries.map(ofDelivery),
          isFiltered ? 'No delivery fits.' : 'No delivery yet: each completion makes one for every endpoint that wants it.'),
        pages(trail, next, to => { trail = to; page.refresh(); })),
    ];
  }

  return { title: 'Webhooks', everyMs: 3000, load, draw };
}

/** Enabled is not well: where every attempt fails, that is said. */
function standing(endpoint) {
  return !endpoint.enabled ? 'disabled' : endpoint.failing_since ? 'failing' : 'enabled';
}

function lastly(attempt) {
  if (!attempt) return none;
  return attempt.status ? `HTTP ${attempt.status}` : h('span', { class: 'clip' }, attempt.error ?? 'no answer');
}

function one(route, page) {
  const [id] = route.parts;
  let delivery = null;

  async function load(signal) {
    delivery = await api.get(['deliveries', id], { signal });
  }

  const resend = () => ask({
    title: `Send ${id} again?`, about: h('p', null, 'Under the same event id; its schedule begins anew.'), confirm: 'Send again',
    act: async () => {
      await api.post(['deliveries', id, 'resend'], {});
      page.refresh();
      return `${id} is due again`;
    },
  });

  function draw() {
    if (delivery === null) return null;
    const { endpoint, job_id: job } = delivery;
    return [
      h('div', { class: 'bar-of-section' }, badge(delivery.state), delivery.next_attempt_at && h('span', null, 'next attempt ', when(delivery.next_attempt_at)),
        h('span', { class: 'row-actions' }, button('Send again', resend, delivery.state === 'failed' ? 'primary' : ''))),
      facts(
        ['Event', delivery.event], ['Event id', h('code', null, delivery.event_id)], ['Job', job && link('jobs', job, delivery.tenant)], ['Tenant', delivery.tenant],
        ['To', h('code', { class: 'url' }, endpoint?.url ?? delivery.reply_to ?? 'RabbitMQ')], ['Kind', words(delivery.kind)],
        ['Made', when(delivery.created_at)], ['Settled', delivery.finished_at && when(delivery.finished_at)]),
      h('section', null, h('h2', null, 'Attempts'), attempts(delivery.attempts)),
    ];
  }

  return { title: id, back: ['#/webhooks', 'Webhooks'], everyMs: 2000, load, draw };
}
