// Elements, and how numbers are written.

/** Sets attributes; functions become listeners, true an empty attribute; false, null and undefined are left out. */
function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  return element;
}

/** An element "tag.class.class" with children; strings become text, never HTML. */
export function make(kind, attributes = {}, ...children) {
  const [tag, ...classes] = kind.split(".");
  const element = set(document.createElement(tag), attributes);
  element.classList.add(...classes);
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

/** The same of SVG. */
export function draw(kind, attributes = {}, ...children) {
  const [tag, ...classes] = kind.split(".");
  const element = set(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes);
  element.classList.add(...classes);
  element.append(...children.flat());
  return element;
}

/** Sets custom properties: the policy of the page forbids style attributes, not this. */
export function styled(element, properties) {
  for (const [name, value] of Object.entries(properties)) element.style.setProperty(name, value);
  return element;
}

export const byId = (id) => document.getElementById(id);

/** 83.25 s as "1:23.2", with hours where there are any. */
export function clock(seconds, digits = 1) {
  const unit = 10 ** digits;
  const whole = Math.floor(Math.max(seconds, 0) * unit + 1e-6) / unit;
  const rest = (whole % 60).toFixed(digits).padStart(digits ? digits + 3 : 2, "0");
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes}:${rest}`;
  return `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${rest}`;
}

export const percent = (x, digits = 0) => (Number.isFinite(x) ? `${(100 * x).toFixed(digits)} %` : "–");
export const number = (x, digits = 1) => (Number.isFinite(x) ? x.toFixed(digits) : "–");
export const times = (n, one, many = `${one}s`) => `${n} ${n === 1 ? one : many}`;

/** A score with as many digits as tell it apart: .834, .0021. */
export function score(x) {
  if (!Number.isFinite(x)) return "–";
  if (x === 0 || Math.abs(x) >= 0.1) return x.toFixed(Math.abs(x) >= 10 ? 1 : 3);
  return Math.abs(x) >= 0.001 ? x.toFixed(4) : x.toExponential(1);
}
