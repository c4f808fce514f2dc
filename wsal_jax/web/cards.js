// What the parts of the results are made of.

import { make, styled } from "./dom.js";
import { data } from "./data.js";

export const several = data.runs.length > 1;

export function card(title, ...children) {
  return make("section.card", {}, make("h2", {}, title), ...children);
}

function wide(name, content) {
  return make("div.wide", { tabindex: 0, role: "group", "aria-label": name }, content);
}

/** A share as a bar behind its number. */
export function barCell(x, most, text, kind = "") {
  const cell = make(`td.bar-cell${kind}`, {}, make("span", {}, text));
  return styled(cell, { "--share": Number.isFinite(x) && most > 0 ? Math.min(Math.abs(x) / most, 1) : 0 });
}

/** A table that scrolls by itself; a "plain" one has its caption for screen readers only, a head "" is an empty cell. */
export function tableOf(kind, caption, heads, bodies) {
  const cells = heads.map((head) => (head === "" ? make("td") : make("th", { scope: "col" }, head)));
  const body = bodies.every((one) => one.tagName === "TBODY") ? bodies : make("tbody", {}, bodies);
  return wide(
    caption,
    make(`table.${kind}`, {}, make("caption", {}, caption), make("thead", {}, make("tr", {}, cells)), body),
  );
}
