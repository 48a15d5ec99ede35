// What changes something is asked for first, and what the server says against it is shown where it was asked.

import { h, show } from './dom.js';
import { button, input, trouble } from './parts.js';

/** Says something once, also to those who do not see the page. */
export function say(text) {
  const place = document.getElementById('said');
  place.textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { place.textContent = ''; }, 8000);
}

/**
 * Asks, and does it. `act(form)` gets what was entered and resolves to what is said of it; where it fails, the
 * dialog stays and shows the problem. `danger` colours the button; `word` has to be typed first.
 */
export function ask({ title, about, fields, confirm, danger, word, act }) {
  let busy = false;
  let typed = '';
  const close = () => dialog.close();
  const back = button('Cancel', close, 'quiet');
  const go = h('button', { type: 'submit', class: danger ? 'danger' : 'primary' });
  const place = h('div');
  const draw = problem => {
    show(place, problem && trouble(problem));
    back.disabled = busy;
    go.disabled = busy || Boolean(word && typed !== word);
    go.textContent = busy ? 'Working…' : confirm;
    place.scrollIntoView({ block: 'nearest' });
  };
  const submit = async event => {
    event.preventDefault();
    if (go.disabled) return;
    const form = Object.fromEntries(new FormData(event.currentTarget));
    busy = true;
    draw();
    try {
      const said = await act(form);
      close();
      say(said);
    } catch (error) {
      busy = false;
      draw(error);
    }
  };
  const confirming = word && h('label', { class: 'field' },
    h('span', null, 'Type ', h('strong', null, word), ' to confirm'),
    input('confirming', '', { oninput: event => { typed = event.currentTarget.value; draw(); } }));
  const dialog = h('dialog', { 'aria-labelledby': 'dialog-title', oncancel: event => { if (busy) event.preventDefault(); }, onclose: () => dialog.remove() },
    h('form', { onsubmit: submit }, h('h2', { id: 'dialog-title' }, title), h('div', null, about), fields, confirming, place, h('div', { class: 'actions' }, back, go)));
  draw();
  document.body.append(dialog);
  dialog.showModal();
}
