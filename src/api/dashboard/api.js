// Calls to the API this page came from. The token is kept in memory, or in the storage of this tab where the reader
// wants that; it goes into one header field and nowhere else.

const ROOT = new URL('..', import.meta.url);
const KEPT_AS = 'paceline-token';
// The server answers within 30 s.
const ANSWER_WITHIN_MS = 35_000;

let token = sessionStorage.getItem(KEPT_AS);
const listeners = new Set();

/** What went wrong, as the server says it (RFC 9457), or why it said nothing. */
export class Problem extends Error {
  constructor(status, document, waitMs = 0) {
    super(document.detail ?? document.title);
    Object.assign(this, { status, document, waitMs });
  }
}

export const session = {
  get signedIn() { return token !== null; },
  /** Tells of a token that came or went (`in`, `out`), and of a server that wants another one (`wanted`). */
  onchange(listener) { listeners.add(listener); },
  signIn(value, keep) {
    token = value;
    if (keep) sessionStorage.setItem(KEPT_AS, value);
    else sessionStorage.removeItem(KEPT_AS);
    tell('in');
  },
  signOut() {
    token = null;
    sessionStorage.removeItem(KEPT_AS);
    tell('out');
  },
};

function tell(what) {
  for (const listener of listeners) listener(what);
}

/** The answer to a request; `path` in parts, each of which is encoded. */
export async function fetchPath(method, parts, { query, body, headers, signal, within = ANSWER_WITHIN_MS } = {}) {
  if (parts.some(part => part === '' || part === '.' || part === '..')) throw new Problem(404, { title: 'There is no such thing' });
  const url = new URL(parts.map(encodeURIComponent).join('/'), ROOT);
  for (const [name, value] of Object.entries(query ?? {})) if (value !== null && value !== undefined) url.searchParams.set(name, value);
  const init = { method, headers: { ...headers }, cache: 'no-store', redirect: 'error', signal: limited(signal, within) };
  if (token !== null) init.headers.authorization = `Bearer ${token}`;
  if (body !== undefined) {
    init.headers['content-type'] = 'application/json';
    init.body = typeof body === 'string' ? body : JSON.stringify(body);
  }
  const sent = token;
  try {
    const response = await fetch(url, init);
    if (response.status === 401 && sent === token) tell('wanted');
    return response;
  } catch (error) {
    if (signal?.aborted) throw error;
    throw unreachable(error);
  }
}

function limited(signal, within) {
  const signals = [signal, within && AbortSignal.timeout(within)].filter(Boolean);
  return AbortSignal.any(signals);
}

function unreachable(error) {
  const late = error.name === 'TimeoutError';
  const detail = late
    ? 'It did not answer within 35 s. What was asked for may have happened: look before you try again.'
    : 'Nothing came back. Is the process running, and can this browser reach it?';
  return new Problem(0, { title: 'The server does not answer', detail });
}

/** The text of an answer that is fine; a problem otherwise. */
export async function textOf(response, signal) {
  let text;
  try {
    text = await response.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw unreachable(error);
  }
  if (!response.ok) throw problemOf(response, text);
  return text;
}

/** What an answer that is not fine says. */
export function problemOf(response, text) {
  let document = { title: `The server answered ${response.status}` };
  try {
    document = { ...document, ...JSON.parse(text) };
  } catch { /* not from the API: a proxy, perhaps */ }
  const seconds = Number(response.headers.get('retry-after'));
  return new Problem(response.status, document, Number.isFinite(seconds) ? seconds * 1000 : 0);
}

async function json(method, parts, options) {
  const response = await fetchPath(method, parts, options);
  const text = await textOf(response, options?.signal);
  return text === '' ? null : JSON.parse(text);
}

export const api = {
  get: (parts, options) => json('GET', ['v1', ...parts], options),
  post: (parts, body, options) => json('POST', ['v1', ...parts], { ...options, body }),
  delete: (parts, options) => json('DELETE', ['v1', ...parts], options),
  /** The answer as it was written. */
  async text(parts, options) {
    return textOf(await fetchPath('GET', ['v1', ...parts], options), options?.signal);
  },
  /** Readiness; red is an answer, too. */
  async ready(signal) {
    const response = await fetchPath('GET', ['readyz'], { signal });
    if (response.status !== 200 && response.status !== 503) throw problemOf(response, await response.text());
    return response.json();
  },
};
