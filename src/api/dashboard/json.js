// JSON as it was written: numbers that a browser would round, and the order of members, stay as they are.

const TOKEN = /"[^"\\]*(?:\\.[^"\\]*)*"|[{}[\],:]|[^\s{}[\],:"]+/gs;

/** The source of a member of the outermost object; null where there is none. */
export function member(text, name) {
  let depth = 0;
  let begin = null;
  let last = null;
  for (const { 0: token, index } of text.matchAll(TOKEN)) {
    if ((token === '}' || token === ']') && --depth === 0 && begin !== null) return text.slice(begin, index).trim();
    if (depth === 1 && token === ',' && begin !== null) return text.slice(begin, index).trim();
    if (depth === 1 && token === ':' && last?.[0] === '"' && JSON.parse(last) === name) begin = index + 1;
    if (token === '{' || token === '[') depth++;
    last = token;
  }
  return null;
}

/** The same, indented. */
export function pretty(text) {
  let out = '';
  let depth = 0;
  let last = '';
  const line = () => '\n' + '  '.repeat(depth);
  for (const [token] of text.matchAll(TOKEN)) {
    const closes = token === '}' || token === ']';
    const opened = last === '{' || last === '[';
    if (closes) depth--;
    if (closes ? !opened : opened || last === ',') out += line();
    out += token === ':' ? ': ' : token;
    if (token === '{' || token === '[') depth++;
    last = token;
  }
  return out;
}
