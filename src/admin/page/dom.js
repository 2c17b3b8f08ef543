// Elements, out of text. What the service says was written by strangers: here it becomes text and values of attributes, and never markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element: `h("td", { class: "number" }, 17)`. Children are nodes, lists, or whatever becomes text; null and false are left out. */
export function h(name, attributes, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** The same for drawings. */
export function svg(name, attributes, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
    } else if (name.startsWith("on") || (name === "href" && !String(value).startsWith("#"))) {
      throw new Error(`no element gets the attribute ${name}=${value}`);
    } else {
      node.setAttribute(name, value === true ? "" : String(value));
    }
  }
  node.append(...textOf(children));
  return node;
}

function textOf(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
}

/** By its id; everything that is looked for stands in index.html. */
export function byId(id) {
  return document.getElementById(id);
}

/** What somebody else wrote, apart from what stands around it: what turns the direction of writing round, or can't be seen, is spelled out. */
export function foreign(text) {
  return h("bdi", { class: "foreign" }, visible(text));
}

export function visible(text, { lines = false } = {}) {
  const hidden = /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
  return String(text ?? "").replace(hidden, (found) => (lines && "\n\r\t".includes(found) ? found : `\\u{${found.codePointAt(0).toString(16)}}`));
}

/** Sets the text, if it is another: what has not changed keeps its selection, and is not read aloud again. */
export function say(node, text) {
  if (node.textContent !== String(text)) node.textContent = String(text);
}

/** Shows these children in place of the old ones, and keeps every element that is as it was, with focus, selection and scroll. */
export function show(parent, ...children) {
  const wanted = h("div", null, ...children);
  become(parent, wanted);
}

/** Has a node look like another one. Listeners stay those of the old one, so what is shown anew is listened to from above. */
export function become(node, other) {
  const [before, after] = [[...node.childNodes], [...other.childNodes]];
  after.forEach((child, at) => {
    const old = before[at];
    if (!old) {
      node.append(child);
    } else if (old.nodeType === Node.TEXT_NODE && child.nodeType === Node.TEXT_NODE) {
      if (old.data !== child.data) old.data = child.data;
    } else if (old.nodeName !== child.nodeName || old.id !== child.id) {
      old.replaceWith(child);
    } else {
      dress(old, child);
      become(old, child);
    }
  });
  before.slice(after.length).forEach((child) => child.remove());
}

function dress(node, other) {
  for (const { name } of [...node.attributes]) if (!other.hasAttribute(name)) node.removeAttribute(name);
  for (const { name, value } of other.attributes) if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

/** Shows a row for each item. A row stays the same element for as long as its item is there, so that nobody presses what has moved under the finger. */
export function rows(body, items, keyOf, build) {
  const known = new Map([...body.children].map((row) => [row.dataset.key, row]));
  const wanted = items.map((item) => {
    const [key, row] = [keyOf(item), build(item)];
    row.dataset.key = key;
    const old = known.get(key);
    if (!old) return row;
    known.delete(key);
    dress(old, row);
    become(old, row);
    return old;
  });
  known.forEach((row) => row.remove());
  wanted.forEach((row, at) => {
    if (body.children[at] !== row) body.insertBefore(row, body.children[at] ?? null);
  });
}

/** A message that comes and goes, and is read aloud. */
export function notice(text, kind = "good") {
  const place = byId("notices");
  const note = h("p", { class: `notice ${kind}` }, text);
  place.append(note);
  while (place.children.length > 3) place.firstChild.remove();
  setTimeout(() => note.remove(), 12_000);
}
