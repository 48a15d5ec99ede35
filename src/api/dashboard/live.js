// When to look again: every so often, at once when something happened, ever more rarely while the server does not
// answer, and never while nobody sees the page.

import { Problem, fetchPath, problemOf } from './api.js';

const BACKOFF_MS = [2_000, 30_000];
// A look takes at most this share of the time, so that a server which counts slowly is not kept busy by being watched.
const SHARE = 10;
// Nudges closer together than this are one.
const NUDGE_MS = 500;
// The server sends something every 10 s.
const SILENT_MS = 25_000;

/** Calls `look(signal)` until it is stopped; tells `state` what it is doing: `{is, waitMs}`. */
export class Loop {
  #look; #everyMs; #state; #timer = null; #abort = null; #failures = 0; #again = false; #stopped = false;
  /** When the next look is due, and when it may be at the earliest. */
  #due = 0; #rested = 0;
  #seen = () => (document.hidden ? this.#pause() : this.now());

  constructor(look, everyMs, state) {
    this.#look = look;
    this.#everyMs = everyMs;
    this.#state = state;
    document.addEventListener('visibilitychange', this.#seen);
    if (document.hidden) this.#pause();
    else this.now();
  }

  /** Looks at once, and anew where it is looking already: something else is wanted now. */
  now() {
    if (this.#stopped || document.hidden) return;
    this.#abort?.abort();
    this.#run();
  }

  /** Looks soon: something happened. Many nudges make no look later, and few more. */
  nudge() {
    if (this.#stopped || document.hidden || this.#failures > 0) return;
    const waitMs = Math.max(NUDGE_MS, this.#rested - performance.now());
    if (this.#abort) this.#again = true;
    else if (this.#due > performance.now() + waitMs) this.#in(waitMs);
  }

  stop() {
    this.#stopped = true;
    document.removeEventListener('visibilitychange', this.#seen);
    this.#pause();
  }

  #pause() {
    clearTimeout(this.#timer);
    this.#abort?.abort();
    this.#abort = null;
    if (!this.#stopped) this.#state({ is: 'paused' });
  }

  #in(ms) {
    clearTimeout(this.#timer);
    this.#due = performance.now() + ms;
    if (!this.#stopped) this.#timer = setTimeout(() => this.#run(), ms);
  }

  async #run() {
    clearTimeout(this.#timer);
    const abort = (this.#abort = new AbortController());
    const began = performance.now();
    let waitMs;
    try {
      await this.#look(abort.signal);
      if (abort.signal.aborted) return;
      const restMs = (performance.now() - began) * SHARE;
      this.#rested = performance.now() + restMs;
      this.#failures = 0;
      waitMs = Math.max(this.#everyMs, restMs);
      this.#state({ is: 'live', waitMs });
    } catch (error) {
      if (abort.signal.aborted) return;
      // A fault of the page's own belongs into the console.
      if (!(error instanceof Problem)) reportError(error);
      waitMs = Math.max(backoff(this.#failures++), error.waitMs ?? 0);
      this.#state({ is: 'failed', waitMs });
    }
    this.#abort = null;
    this.#in(waitMs);
    if (this.#again) this.nudge();
    this.#again = false;
  }
}

function backoff(failures) {
  const [first, most] = BACKOFF_MS;
  return Math.min(most, first * 2 ** Math.min(failures, 10)) * (0.8 + 0.4 * Math.random());
}

/**
 * Follows completions while the page is seen, and calls `happened(kind)` for each; `state(isOpen)` when that changes.
 * By fetch, since an EventSource cannot send a token. Where there is no stream to be had, looking every so often is
 * all there is, and the stream is tried again later.
 */
export class Stream {
  #query; #happened; #state; #abort = null; #timer = null; #failures = 0; #last = null; #stopped = false;
  #seen = () => (document.hidden ? this.#close() : this.#open());

  constructor(query, happened, state) {
    this.#query = query;
    this.#happened = happened;
    this.#state = state;
    document.addEventListener('visibilitychange', this.#seen);
    if (!document.hidden) this.#open();
  }

  stop() {
    this.#stopped = true;
    document.removeEventListener('visibilitychange', this.#seen);
    this.#close();
  }

  #close() {
    clearTimeout(this.#timer);
    this.#abort?.abort();
    this.#abort = null;
    this.#state(false);
  }

  async #open() {
    if (this.#stopped || this.#abort) return;
    clearTimeout(this.#timer);
    const abort = (this.#abort = new AbortController());
    let status = 0;
    try {
      const headers = this.#last ? { 'last-event-id': this.#last } : {};
      const response = await fetchPath('GET', ['v1', 'events'], { query: this.#query, headers, signal: abort.signal, within: 0 });
      status = response.status;
      if (!response.ok) throw problemOf(response, await response.text());
      await this.#read(response.body.getReader(), abort);
    } catch { /* why is told by the calls that the page makes beside it */ }
    if (this.#abort !== abort) return;
    this.#close();
    // Without the right to follow there is nothing to wait for: another token opens another stream.
    if (!this.#stopped && status !== 401 && status !== 403) this.#timer = setTimeout(() => this.#open(), backoff(this.#failures++));
  }

  async #read(reader, abort) {
    const decoder = new TextDecoder();
    let rest = '';
    for (;;) {
      const silent = setTimeout(() => abort.abort(), SILENT_MS);
      const { done, value } = await reader.read().finally(() => clearTimeout(silent));
      if (done) return;
      this.#failures = 0;
      this.#state(true);
      const lines = (rest + decoder.decode(value, { stream: true })).split('\n');
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith('id: ')) this.#last = line.slice(4);
        else if (line.startsWith('event: ')) this.#happened(line.slice(7));
      }
    }
  }
}
