// Elements from values, and one tree brought to the form of another, so that a view is a function of its data and a
// refresh disturbs neither focus, nor selection, nor what somebody is typing. Text only ever becomes a text node.

const SVG = 'http://www.w3.org/2000/svg';
const IN_SVG = new Set(['svg', 'path', 'polyline', 'line', 'rect', 'circle']);
// Kept as the reader left them: open parts of the page, and fields.
const KEPT = new Set(['open']);

/** An element: `h('td', {class: 'num', onclick: act}, 'text', other)`. A property that is null or false is left out. */
export function h(name, properties, ...children) {
  const element = IN_SVG.has(name) ? document.createElementNS(SVG, name) : document.createElement(name);
  add(element, children);
  // After the children: a choice can only be made of what there is.
  for (const [key, value] of Object.entries(properties ?? {})) set(element, key, value);
  return element;
}

function set(element, key, value) {
  if (value === null || value === undefined || value === false) return;
  if (key === 'key') element.key = String(value);
  else if (key === 'value') element.value = element.given = String(value);
  else if (key === 'checked') element.checked = element.given = true;
  else if (key.startsWith('on')) listen(element, key.slice(2), value);
  // Links lead within this page, whoever wrote the text behind them.
  else if (key === 'href' && !String(value).startsWith('#')) throw new Error(`a link out of the page: ${value}`);
  else element.setAttribute(key, value === true ? '' : String(value));
}

// One listener an event, so that a newer tree can replace what it does.
function listen(element, event, act) {
  element.acts ??= {};
  if (!element.acts[event]) element.addEventListener(event, e => element.acts[event]?.(e));
  element.acts[event] = act;
}

function add(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false || child === '') continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

/** Brings the children of `parent` to the form of these. */
export function show(parent, ...children) {
  const fresh = document.createElement(parent.localName);
  add(fresh, children);
  patchChildren(parent, fresh);
}

function same(old, fresh) {
  return old.nodeType === fresh.nodeType && old.nodeName === fresh.nodeName && old.key === fresh.key;
}

function patchChildren(parent, fresh) {
  const keyed = new Map();
  for (const child of parent.childNodes) if (child.key !== undefined) keyed.set(child.key, child);
  let at = parent.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    const known = wanted.key === undefined ? at : keyed.get(wanted.key);
    if (known && same(known, wanted)) {
      if (known === at) at = at.nextSibling;
      else parent.insertBefore(known, at);
      patch(known, wanted);
    } else {
      parent.insertBefore(wanted, at);
    }
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

function patch(old, fresh) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!KEPT.has(name) && !fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (!KEPT.has(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const [event, act] of Object.entries(fresh.acts ?? {})) listen(old, event, act);
  for (const event of Object.keys(old.acts ?? {})) if (!fresh.acts?.[event]) delete old.acts[event];
  patchChildren(old, fresh);
  // After its options. A field that somebody changed stays as it is until what is given changes.
  if (fresh.given !== old.given) {
    old.given = fresh.given;
    if (typeof fresh.given === 'string') old.value = fresh.given;
    else old.checked = fresh.checked;
  }
}
