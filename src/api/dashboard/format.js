// Numbers, times and states as people read them.

const WHOLE = new Intl.NumberFormat('en');
const DIGITS = n => new Intl.NumberFormat('en', { minimumFractionDigits: n, maximumFractionDigits: n });
const [ONE, TWO] = [DIGITS(1), DIGITS(2)];
const CLOCK = new Intl.DateTimeFormat('en-GB', { dateStyle: 'medium', timeStyle: 'medium' });

export const none = '–';

export function count(n) {
  return n === null || n === undefined ? none : WHOLE.format(n);
}

/** Calls a second. */
export function rate(n) {
  if (n === null || n === undefined) return none;
  return n >= 100 ? WHOLE.format(Math.round(n)) : n >= 10 ? ONE.format(n) : TWO.format(n);
}

export function percent(share) {
  return share === null || share === undefined ? none : `${ONE.format(share * 100)} %`;
}

/** A span in its largest units. */
export function span(ms, most = 2) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 10_000) return `${Number((ms / 1000).toFixed(1))} s`;
  const units = [['d', 86_400_000], ['h', 3_600_000], ['min', 60_000], ['s', 1000]];
  const first = units.findIndex(([, size]) => ms >= size);
  return units.slice(first, first + most).map(([name, size], at) => [name, Math.floor((at ? ms % units[first][1] : ms) / size)])
    .filter(([, n], at) => at === 0 || n > 0).map(([name, n]) => `${n} ${name}`).join(' ');
}

/** How far a time is from now, in words. */
export function fromNow(at) {
  const ms = Date.parse(at) - Date.now();
  if (Number.isNaN(ms)) return none;
  if (Math.abs(ms) < 1000) return 'now';
  return ms > 0 ? `in ${span(ms)}` : `${span(-ms, 1)} ago`;
}

/** In the reader's time zone. */
export function clock(at) {
  return CLOCK.format(new Date(at));
}

export function bytes(n) {
  return n < 1024 ? `${n} bytes` : n < 1_048_576 ? `${ONE.format(n / 1024)} KiB` : `${ONE.format(n / 1_048_576)} MiB`;
}

/** A name of the API as words: `attempts_exhausted`. */
export function words(name) {
  return String(name).replaceAll('_', ' ');
}

/** How a state is shown: the icon tells the same as the colour. */
const KINDS = {
  ok: ['open', 'succeeded', 'delivered', 'enabled', 'closed', 'done'],
  busy: ['running', 'probing'],
  idle: ['queued', 'waiting', 'pending', 'unknown', 'stopped'],
  warn: ['paused', 'parked', 'failing'],
  bad: ['dead', 'failed', 'refused', 'missing'],
  off: ['cancelled', 'expired', 'disabled', 'removed'],
};

export function kindOf(state) {
  return Object.keys(KINDS).find(kind => KINDS[kind].includes(state)) ?? 'idle';
}
