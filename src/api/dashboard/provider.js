// One provider: its rate, its queue, its budgets and keys, and the ways out of every state they can be in.

import { api } from './api.js';
import { ask } from './dialog.js';
import { h } from './dom.js';
import { count, none, percent, rate, span, words } from './format.js';
import { badge, bar, button, facts, icon, input, sparkline, table, when } from './parts.js';
import { breaker, needs, nextSlot, remember, seenRates, slotIn } from './overview.js';

/** Rows of a page. */
const ROWS = 50;

function limits(of) {
  if (of.length === 0) return none;
  return h('ul', { class: 'limits' }, of.map(limit => h('li', null,
    h('span', { class: 'limit-text' }, `${count(limit.used)} of ${count(limit.most)}`,
      h('span', { class: 'small' }, ` ${limit.unit}${limit.per_ms ? ` in ${span(limit.per_ms)}` : ' at once'}`)),
    bar(limit.used, limit.most))));
}

/** What a key does not say: why it is out of use, by whom, until when. */
function why(key) {
  if (key.disabled_by) return h('span', { class: 'small' }, `by ${key.disabled_by} `, when(key.disabled_at));
  return key.until ? h('span', { class: 'small' }, 'ends ', when(key.until)) : null;
}

/** A part of a long list, and the way through it. */
class Part {
  constructor(page, fits) {
    Object.assign(this, { page, fits, text: '', from: 0 });
  }

  draw(all, label, draw) {
    const fitting = all.filter(item => this.text === '' || this.fits(item, this.text));
    this.from = Math.min(this.from, Math.max(0, Math.floor((fitting.length - 1) / ROWS) * ROWS));
    const shown = fitting.slice(this.from, this.from + ROWS);
    const step = by => () => { this.from += by; this.page.draw(); };
    return [
      h('div', { class: 'bar-of-section' }, h('h2', null, label), h('span', { class: 'small' }, count(all.length)),
        all.length > 10 && h('label', { class: 'find' }, h('span', { class: 'unseen' }, `Find in ${label}`), input(`find-${label}`, this.text, {
          placeholder: 'Name or state', oninput: event => { this.text = event.currentTarget.value.trim(); this.from = 0; this.page.draw(); },
        }))),
      draw(shown),
      fitting.length > ROWS && h('nav', { class: 'pages', 'aria-label': `Pages of ${label}` },
        button('Previous', step(-ROWS), '', { disabled: this.from === 0 }),
        h('span', null, `${this.from + 1}–${this.from + shown.length} of ${count(fitting.length)}`),
        button('Next', step(ROWS), '', { disabled: this.from + ROWS >= fitting.length })),
    ];
  }
}

export default function provider(route, page) {
  const [name] = route.parts;
  let seen = null;
  const budgets = new Part(page, (budget, text) => budget.name.includes(text) || budget.state.includes(text));
  const keys = new Part(page, ({ key, budget }, text) => key.label.includes(text) || key.state.includes(text) || budget.includes(text));

  async function load(signal) {
    seen = await api.get(['providers', name], { signal });
    remember([seen]);
  }

  const order = (parts, said) => async () => {
    await api.post(['providers', name, ...parts], {});
    page.refresh();
    return said;
  };

  function pause() {
    if (seen.state === 'paused') {
      return button('Resume', () => ask({
        title: `Resume ${name}?`, about: h('p', null, 'Calls go out again, at the allowed rate, in every process.'), confirm: 'Resume',
        act: order(['resume'], `${name} is resumed`),
      }), 'primary');
    }
    return button('Pause', () => ask({
      title: `Pause ${name}?`,
      about: h('p', null, 'Nothing is sent to it any more until it is resumed, by any process. Open calls end as usual, jobs wait, and nothing fails; deadlines go on counting.'),
      confirm: 'Pause', danger: true, act: order(['pause'], `${name} is paused`),
    }));
  }

  function resume(budget) {
    if (budget.state !== 'paused' && budget.state !== 'parked') return null;
    return button('Resume', () => ask({
      title: `Use the budget ${budget.name} again?`,
      about: h('p', null, 'The provider asked to wait. If it still does, its answers are refused, and the budget is set aside again.'),
      confirm: 'Resume', act: order(['budgets', budget.name, 'resume'], `${budget.name} is used again`),
    }), 'small-button', { 'aria-label': `Resume the budget ${budget.name}` });
  }

  function turn(key) {
    const more = verb => ({ 'aria-label': `${verb} the key ${key.label}` });
    if (key.state === 'missing' || key.state === 'removed') return null;
    const enable = () => ask({
      title: `Use the key ${key.label} again?`, about: h('p', null, 'At once, whatever was learnt of it.'), confirm: 'Enable',
      act: order(['keys', key.label, 'enable'], `${key.label} is used again`),
    });
    const disable = () => ask({
      title: `Use the key ${key.label} no more?`,
      about: h('p', null, 'Calls that are under way end as usual. Jobs that are pinned to it wait; the others go with the other keys.'),
      confirm: 'Disable', danger: true, act: order(['keys', key.label, 'disable'], `${key.label} is disabled`),
    });
    const isOut = key.state === 'disabled' || key.state === 'refused';
    return [isOut && button('Enable', enable, 'small-button', more('Enable')), key.state !== 'disabled' && button('Disable', disable, 'small-button', more('Disable'))];
  }

  const ofBudget = budget => ({
    key: budget.name,
    cells: [
      h('span', { class: 'name' }, budget.name),
      [badge(budget.state), budget.until && h('span', { class: 'small' }, ' ends ', when(budget.until))],
      rate(budget.achieved_per_second),
      budget.allowed_per_second === null ? (budget.probing ? words(budget.probing) : 'no limit') : rate(budget.allowed_per_second),
      percent(budget.utilisation),
      limits(budget.limits),
      slotIn(budget.next_slot_at),
      count(budget.pacing_errors),
      resume(budget),
    ],
  });

  const ofKey = ({ key, budget }) => ({
    key: key.label,
    cells: [h('code', null, key.label), budget === key.label ? 'its own' : budget, [badge(key.state), ' ', why(key)], limits(key.limits), h('span', { class: 'row-actions' }, turn(key))],
  });

  function queue() {
    if (seen.queue === null) return h('p', { class: 'empty' }, 'The store could not count in time.');
    const columns = [['Lane'], ['Queued', 'num'], ['Waiting', 'num'], ['Running', 'num'], ['In line', 'num']];
    return table('Queue by lane', columns, seen.queue.map(lane => ({
      key: lane.lane,
      cells: [h('a', { href: `#/jobs?provider=${name}&lane=${lane.lane}` }, lane.lane), count(lane.queued), count(lane.waiting), count(lane.running), count(lane.permits_waiting)],
    })), 'No lane.');
  }

  function who() {
    return h('details', null, h('summary', null, 'Who dispatches'),
      table('Leases', [['Group'], ['Held by'], ['Taken', 'num'], ['Runs out', 'num']], seen.leases.slice(0, ROWS).map(lease => ({
        key: lease.group, cells: [lease.group || 'all of it', lease.held ? h('code', null, lease.owner) : 'nobody', count(lease.epoch), lease.held ? `in ${span(lease.expires_in_ms)}` : none],
      })), 'Nobody has ever dispatched it.'),
      seen.leases.length > ROWS && h('p', { class: 'small' }, `The first ${ROWS} of ${count(seen.leases.length)}.`),
      h('p', { class: 'small' }, seen.reports.slice(0, ROWS).map(told => `${told.owner} told ${span(told.age_ms)} ago. `)));
  }

  function draw() {
    if (seen === null) return null;
    const troubles = needs(null, [seen]);
    const all = seen.budgets.flatMap(budget => budget.keys.map(key => ({ key, budget: budget.name })));
    const slot = nextSlot(seen);
    return [
      h('div', { class: 'bar-of-section' },
        h('span', { class: 'badges' }, badge(seen.state), breaker(seen)),
        h('span', { class: 'row-actions' }, pause())),
      troubles.length > 0 && h('ul', { class: 'notes' }, troubles.map(need =>
        h('li', { key: need.key, class: need.kind }, icon(need.kind), h('span', null, h('strong', null, need.what), '. ', need.text)))),
      h('section', { class: 'figures', 'aria-label': 'Rate' },
        facts(
          ['Calls a second', [h('strong', { class: 'big' }, rate(seen.achieved_per_second)), h('span', { class: 'small' }, ` of ${seen.allowed_per_second === null ? 'no limit' : rate(seen.allowed_per_second)}`)]],
          ['Used of what is allowed', h('strong', { class: 'big' }, percent(seen.utilisation))],
          ['Open calls', h('strong', { class: 'big' }, count(seen.open_calls))],
          ['429s in spite of a permit', h('strong', { class: 'big' }, count(seen.pacing_errors))],
          ['Next slot', h('strong', { class: 'big' }, slotIn(slot))]),
        sparkline(seenRates(name), seen.allowed_per_second)),
      h('section', null, h('h2', null, 'Queue'), queue()),
      h('section', null, keys.draw(all, 'Keys', shown => table('Keys', [['Key'], ['Budget'], ['State'], ['Taken of its limits', 'wide'], ['', 'acts']], shown.map(ofKey),
        all.length === 0 ? ['No key. Calls go without a credential, or ', h('code', null, 'paceline keys add'), ' stores one.'] : 'No key like that.')),
        seen.keys_left_out > 0 && h('p', { class: 'small' }, `${count(seen.keys_left_out)} more keys are not listed.`)),
      h('section', null, budgets.draw(seen.budgets, 'Budgets', shown => table('Budgets',
        [['Budget'], ['State'], ['Calls/s', 'num'], ['Allowed/s', 'num'], ['Used', 'num'], ['Taken of its limits', 'wide'], ['Next slot', 'num'], ['429s', 'num'], ['', 'acts']],
        shown.map(ofBudget), 'No budget.'))),
      who(),
    ];
  }

  return { title: name, back: ['#/', 'Overview'], everyMs: 2000, load, draw };
}
