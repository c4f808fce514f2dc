// An image with a map over it, and boxes.

import { draw, make, score, styled } from "./dom.js";
import { data } from "./data.js";
import { several } from "./cards.js";

/** Matplotlib's inferno at eighths. */
const COLORS = [
  [0, 0, 4],
  [40, 11, 84],
  [101, 21, 110],
  [159, 42, 99],
  [212, 72, 66],
  [245, 125, 21],
  [250, 193, 39],
  [252, 255, 164],
];

export const VERDICTS = { right: "right", box: "box wrong", class: "class wrong" };

function color(level) {
  const at = (level / 255) * (COLORS.length - 1);
  const low = Math.min(Math.floor(at), COLORS.length - 2);
  return COLORS[low].map((x, i) => Math.round(x + (at - low) * (COLORS[low + 1][i] - x)));
}

/** The map of a class; a pixel is a location, and the browser scales it up. */
function heat([h, w], text) {
  const canvas = make("canvas.heat", { width: w, height: h, "aria-hidden": "true" });
  const levels = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const pixels = new ImageData(w, h);
  levels.forEach((level, i) => pixels.data.set([...color(level), 255], 4 * i));
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

function box([x0, y0, x1, y1], kind) {
  return draw(`rect.${kind}`, { x: x0, y: y0, width: x1 - x0, height: y1 - y0 });
}

/** The label whose map is shown: the found class, or the true one if it is wanted and there is one. */
function mapped(image, run, wanted) {
  return wanted === "true" && image.labels.length ? image.labels[0] : run.top?.[0];
}

function spoken(image, run) {
  const names = (labels) => labels.map((label) => data.classes[label]).join(", ") || "not known";
  const top = run?.top ? `; found ${data.classes[run.top[0]]}` : "";
  return `${image.id}, true class ${names(image.labels)}${top}`;
}

function stage(image, run, wanted) {
  const label = run && mapped(image, run, wanted);
  const map = run?.maps.find(([of]) => of === label);
  const found = (run?.found ?? []).filter((one) => one[4] === label);
  const view = { viewBox: `0 0 ${image.width} ${image.height}`, preserveAspectRatio: "none", "aria-hidden": "true" };
  const picture = image.picture
    ? make("img", { src: image.picture, alt: spoken(image, run) })
    : make("p.gone", {}, "The image is no longer there.");
  const frame = make(
    "div.stage",
    {},
    picture,
    map ? heat(run.grid, map[1]) : null,
    draw(
      "svg",
      view,
      ...(image.truth ?? []).map((one) => box(one, "is-true")),
      ...found.map((one) => box(one, "is-found")),
    ),
  );
  return styled(frame, { "--shape": `${image.width} / ${image.height}` });
}

function caption(run, name) {
  if (!run) return make("figcaption", {}, several ? make("strong", {}, name) : null, " not in this run");
  const best = run.top ? run.found.filter((one) => one[4] === run.top[0]).map((one) => one[5]) : [];
  const found = run.top ? data.classes[run.top[0]] : "nothing found";
  return make(
    "figcaption",
    {},
    several ? make("strong", {}, `${name}: `) : null,
    found,
    best.length ? ` ${score(best[0])}` : "",
    run.verdict ? make(`span.sign.${run.verdict}`, {}, VERDICTS[run.verdict]) : null,
  );
}

/** An entry of the gallery: a picture for each run. */
export function shot(image, wanted) {
  const of = data.runs.map((one, r) =>
    make("figure", {}, stage(image, image.runs[r], wanted), caption(image.runs[r], one.name)),
  );
  const labels = image.labels.map((label) => data.classes[label]).join(", ");
  return make(
    "li.shot",
    {},
    make("p.name", { title: image.id }, image.id),
    make("p.soft", {}, labels ? `true: ${labels}` : "class not known"),
    make("div.pictures", {}, of),
  );
}
