// The frame: which view is shown, when it looks again, who is signed in.

import { session } from './api.js';
import { h, show } from './dom.js';
import { span } from './format.js';
import { Loop, Stream } from './live.js';
import { field, icon, trouble } from './parts.js';
import dead from './dead.js';
import hooks from './hooks.js';
import jobs from './jobs.js';
import overview from './overview.js';
import provider from './provider.js';

const VIEWS = {
  '': overview, jobs, dead, webhooks: hooks,
  providers: (route, page) => (route.parts.length > 0 ? provider : overview)(route, page),
};
const main = document.getElementById('main');
const place = document.getElementById('link');
const signOut = document.getElementById('sign-out');

let current = null;

/** `#/jobs/order-1?tenant=acme` in parts. */
function parse(hash) {
  const [path, query = ''] = hash.replace(/^#\/?/, '').split('?');
  const parts = path.split('/').filter(Boolean).map(part => { try { return decodeURIComponent(part); } catch { return part; } });
  return { view: parts[0] ?? '', parts: parts.slice(1), query: Object.fromEntries(new URLSearchParams(query)) };
}

/** One view on the page, from when it is opened until the next one is. */
class Page {
  #view; #loop; #stream = null; #problem = null; #loaded = false; #doing = { is: 'live' }; #open = false; #isClosed = false;

  /** `keeps`: what is on the page stays until this one has something to show. */
  constructor(route, keeps) {
    const make = Object.hasOwn(VIEWS, route.view) ? VIEWS[route.view] : nothing;
    this.#view = make(route, this);
    document.title = `${this.#view.title} · Paceline`;
    for (const link of document.querySelectorAll('#nav a')) {
      const is = (parse(link.hash).view || 'providers') === (route.view || 'providers');
      if (is) link.setAttribute('aria-current', 'page');
      else link.removeAttribute('aria-current');
    }
    if (!keeps) this.draw();
    this.#loop = new Loop(signal => this.#look(signal), this.#view.everyMs, doing => { this.#doing = doing; this.#tell(); });
    if (this.#view.follow) {
      this.#stream = new Stream(this.#view.follow, () => this.#loop.nudge(), open => { this.#open = open; this.#tell(); });
    }
  }

  async #look(signal) {
    try {
      await this.#view.load(signal);
      if (signal.aborted) return;
      this.#problem = null;
      this.#loaded = true;
    } catch (error) {
      if (signal.aborted) return;
      this.#problem = error;
      throw error;
    } finally {
      if (!signal.aborted) this.draw();
      // Another token opens another page.
      if (this.#problem?.status === 401) {
        this.#loop.stop();
        this.#tell();
      }
    }
  }

  draw() {
    if (this.#isClosed) return;
    const signIn = this.#problem?.status === 401;
    const { back } = this.#view;
    show(main,
      back && h('p', { key: 'back', class: 'path' }, h('a', { href: back[0] }, back[1]), ' /'),
      h('h1', { key: 'title' }, this.#view.title),
      signIn ? signInForm() : this.#problem && h('div', { key: 'problem' }, trouble(this.#problem)),
      this.#problem?.status === 403 && h('p', { class: 'small', key: 'advice' }, 'Sign in with a token that has this scope, or go on with what this one may do.'),
      !signIn && (this.#loaded || this.#problem
        ? h('div', { key: 'view', class: this.#problem ? 'view stale' : 'view' }, this.#view.draw())
        : h('p', { key: 'loading', class: 'loading' }, 'Loading…')));
  }

  #tell() {
    const { waitMs } = this.#doing;
    const is = this.#problem?.status === 401 ? 'out' : this.#doing.is;
    const text = {
      out: 'Not signed in',
      live: this.#open ? 'Live' : `Every ${Math.round((waitMs ?? this.#view.everyMs) / 1000)} s`,
      paused: 'Paused while hidden',
      failed: `Not up to date, again in ${span(waitMs)}`,
    }[is];
    show(place, icon({ live: 'ok', paused: 'warn', failed: 'bad', out: 'off' }[is]), text);
    place.className = `link ${is}`;
  }

  /** Looks again at once, such as after something was changed. */
  refresh() {
    this.#loop.now();
  }

  close() {
    this.#isClosed = true;
    this.#loop.stop();
    this.#stream?.stop();
  }
}

function nothing() {
  return { title: 'No such page', everyMs: 3_600_000, load: async () => {}, draw: () => h('p', null, h('a', { href: '#/' }, 'Go to the overview')) };
}

function open(keeps = false) {
  current?.close();
  for (const dialog of document.querySelectorAll('dialog')) dialog.close();
  current = new Page(parse(location.hash), keeps);
}

/** What was said of the token that was tried last. */
let refusal = null;

function signInForm() {
  const submit = event => {
    event.preventDefault();
    const form = event.currentTarget;
    const token = form.elements.token.value.trim();
    if (token === '') return;
    refusal = null;
    session.signIn(token, form.elements.keep.checked);
  };
  return h('form', { key: 'sign-in', class: 'sign-in', onsubmit: submit, autocomplete: 'off' },
    h('p', { role: refusal && 'alert' }, refusal ?? 'This server asks for a token: one of ', !refusal && h('code', null, 'api.tokens'), !refusal && ' in its configuration.'),
    field('Token', h('input', { name: 'token', type: 'password', autocomplete: 'off', required: true, autofocus: true, spellcheck: 'false' })),
    h('label', { class: 'check' }, h('input', { type: 'checkbox', name: 'keep', checked: true }), 'Keep it until this tab is closed'),
    h('p', { class: 'small' }, 'It is sent to this server alone, in a header field, and is never put into an address.'),
    h('button', { type: 'submit', class: 'primary' }, 'Sign in'));
}

session.onchange(what => {
  if (what === 'wanted') {
    if (!session.signedIn) return;
    refusal = 'This token is not known here. Another one?';
    session.signOut();
    return;
  }
  signOut.hidden = !session.signedIn;
  // Not within the look that found it out.
  queueMicrotask(() => open());
});

signOut.addEventListener('click', () => {
  refusal = null;
  session.signOut();
});
signOut.hidden = !session.signedIn;

document.querySelector('.skip').addEventListener('click', event => {
  event.preventDefault();
  main.focus();
});

addEventListener('hashchange', event => {
  const [from, to] = [event.oldURL, event.newURL].map(url => new URL(url).hash.split('?')[0]);
  // Only another filter: whoever sets it is in the middle of that.
  if (from === to) {
    open(true);
    return;
  }
  open();
  scrollTo(0, 0);
  // Where somebody who does not see the page goes on.
  main.focus({ preventScroll: true });
});
open();
