// The video that is chosen: what plays it, its timeline, and what is counted in it.

import { byId, clock, draw, make, percent, score, styled, times } from "./dom.js";
import { classesOf, countIn, curvesOf, data, hasTruth, setRank, state } from "./data.js";
import { Player } from "./player.js";
import { rows, shownClasses, spoken } from "./timeline.js";
import { shownDetections, table } from "./detections.js";
import { showList } from "./list.js";

let player = null;
let parts = {}; // of the chosen video's page, by name

export const playing = () => player;

/** Shows a video. */
export function open(video) {
  player?.end();
  state.video = video;
  state.hidden = new Set();
  state.zoom = 1;
  state.curve = firstCurve(video);
  player = new Player(video, showTime, showPlaying);
  parts = { table: table(video, on.bar) };
  byId("detail").replaceChildren(
    heading(video),
    player.screen,
    player.note,
    controls(video),
    timeline(video),
    parts.table.element,
  );
  update();
  showTime(0);
  showPlaying();
  showList();
  const hash = `#video=${encodeURIComponent(video.id)}`;
  if (location.hash !== hash) history.replaceState(null, "", hash);
  if (matchMedia("(max-width: 50rem)").matches && document.activeElement?.closest("#list")) {
    byId("detail").scrollIntoView();
  }
}

function firstCurve(video) {
  const classes = classesOf(video, state.threshold);
  const kept = (label) => data.runs.some((_, r) => curvesOf(video, r, label).length);
  return (
    classes.find(kept) ?? classes[0] ?? video.runs.find((run) => run?.scores?.classes.length)?.scores.classes[0] ?? null
  );
}

function heading(video) {
  const facts = [
    clock(video.duration),
    times(video.length, "snippet"),
    `one every ${(video.stride / video.fps).toFixed(2)} s`,
    video.truth ? `${times(video.truth.length, "true segment")}` : "truth not known",
  ];
  return make("div.heading", {}, make("h2", { id: "video-title" }, video.id), make("p.soft", {}, facts.join(" · ")));
}

function slider() {
  parts.slider = make("input", {
    type: "range",
    min: 0,
    max: 1,
    step: 0.005,
    value: state.rank,
    id: "threshold",
    input: () => {
      setRank(Number(parts.slider.value));
      update();
      clearTimeout(parts.later);
      parts.later = setTimeout(showList, 60);
    },
  });
  parts.least = make("output", { for: "threshold" });
  return make(
    "label.field.grow",
    { for: "threshold" },
    make("span", {}, "Show scores of at least ", parts.least),
    parts.slider,
  );
}

function overlaps() {
  if (!hasTruth) return null;
  const choose = make(
    "select",
    {
      id: "iou",
      change: () => {
        state.iou = Number(choose.value);
        update();
        showList();
      },
    },
    data.ious.map((iou) => make("option", { value: iou, selected: iou === state.iou }, iou.toFixed(2))),
  );
  return make("label.field", {}, "Hit from IoU ", choose);
}

const ICONS = {
  play: "M5 3v14l12-7z",
  pause: "M5 3h4v14H5zM11 3h4v14h-4z",
  previous: "M4 3h2v14H4zM17 3v14L7 10z",
  next: "M14 3h2v14h-2zM3 3v14l10-7z",
};

function icon(path) {
  return draw("svg", { viewBox: "0 0 20 20", "aria-hidden": "true" }, draw("path", { d: path }));
}

function controls(video) {
  const button = (path, text, click, more = {}) =>
    make("button.icon", { type: "button", title: text, "aria-label": text, click, ...more }, icon(path));
  parts.play = button(ICONS.play, "Play", () => player.toggle(), { id: "play", "aria-keyshortcuts": "Space" });
  parts.now = make("span.now", { id: "now" });
  return make(
    "div.controls",
    {},
    make(
      "div.transport",
      { role: "group", "aria-label": "Playing" },
      parts.play,
      button(ICONS.previous, "Previous detection", () => step(-1), { "aria-keyshortcuts": "[" }),
      button(ICONS.next, "Next detection", () => step(1), { "aria-keyshortcuts": "]" }),
      make("span.time", {}, parts.now, ` / ${clock(video.duration)}`),
    ),
    slider(),
    overlaps(),
  );
}

function legend() {
  const mark = (kind, text) => make("li", {}, make(`span.swatch.${kind}`, { "aria-hidden": "true" }), text);
  const judged = [
    mark("true", "true, found"),
    mark("missed", "true, missed"),
    mark("hit", "detection, a hit"),
    mark("false", "detection, false"),
  ];
  return make(
    "ul.legend",
    { "aria-label": "Legend" },
    ...(state.video.truth ? judged : [mark("unknown", "detection")]),
    make("li.soft", {}, "stronger color: higher score"),
  );
}

function checkboxes() {
  const labels = classesOf(state.video, state.threshold);
  return make(
    "div.classes",
    { role: "group", "aria-label": "Classes shown" },
    labels.length < 2
      ? []
      : labels.map((label) => {
          const box = make("input", {
            type: "checkbox",
            checked: !state.hidden.has(label),
            change: () => {
              if (box.checked) state.hidden.delete(label);
              else state.hidden.add(label);
              update();
            },
          });
          return make("label.check", {}, box, data.classes[label]);
        }),
  );
}

function curveChoice() {
  const kept = [...new Set(state.video.runs.flatMap((run) => run?.scores?.classes ?? []))].sort((a, b) => a - b);
  if (!kept.length) return [];
  const choose = make(
    "select",
    { id: "curve", change: () => showCurve(Number(choose.value)) },
    kept.map((label) => make("option", { value: label, selected: label === state.curve }, data.classes[label])),
  );
  return [make("label.field", {}, "Curves of ", choose)];
}

function timeline(video) {
  const zoom = (text, name, by) =>
    make("button", { type: "button", "aria-label": name, title: name, click: () => zoomBy(by) }, text);
  parts.rows = make("div.rows");
  parts.head = make("div.head-line", { "aria-hidden": "true" });
  parts.sheet = make("div.sheet", {}, parts.rows, make("div.over", { "aria-hidden": "true" }, parts.head));
  parts.scroller = make("div.scroller", { tabindex: 0, role: "group", "aria-label": "Timeline" }, parts.sheet);
  parts.seek = make("input.seek", {
    type: "range",
    min: 0,
    max: video.duration,
    step: "any",
    "aria-label": "Position",
    input: () => player.seek(Number(parts.seek.value)),
  });
  parts.say = make("p.say.soft", {});
  parts.counts = make("div.counts", { role: "status" });
  parts.legend = make("div.key");
  drag(parts.sheet, video);
  return make(
    "section.timeline",
    { "aria-label": "Timeline of the video" },
    parts.counts,
    parts.legend,
    parts.seek,
    parts.scroller,
    make(
      "div.below",
      {},
      parts.say,
      make("div.zoom", { role: "group", "aria-label": "Zoom" }, zoom("−", "Zoom out", 0.5), zoom("+", "Zoom in", 2)),
    ),
  );
}

/** Clicks and drags anywhere but on a button seek. */
function drag(sheet, video) {
  const seek = (event) => {
    const box = sheet.querySelector(".axis").getBoundingClientRect();
    if (event.type === "pointerdown" && event.clientX < box.left - 2) return;
    player.seek((video.duration * (event.clientX - box.left)) / box.width);
  };
  sheet.addEventListener("pointerdown", (event) => {
    if (event.button || event.target.closest("button, .label")) return;
    seek(event);
    if (event.pointerType === "mouse") sheet.setPointerCapture(event.pointerId);
  });
  sheet.addEventListener("pointermove", (event) => sheet.hasPointerCapture(event.pointerId) && seek(event));
}

/** Makes the timeline shorter or longer, and keeps the time that plays in sight. */
export function zoomBy(factor) {
  state.zoom = Math.min(Math.max(state.zoom * factor, 1), 32);
  update();
  const box = parts.scroller;
  box.scrollLeft = (player.now / player.duration) * (box.scrollWidth - 120) - box.clientWidth / 2;
}

/** Shows what the models say of a class. */
export function showCurve(label) {
  state.curve = label;
  update();
}

/** The class of the n-th row. */
export function showRow(n) {
  const { shown } = shownClasses(state.video);
  if (n < shown.length) showCurve(shown[n]);
}

const on = {
  bar(one) {
    if (player.playing && player.stopAt === one[1]) return player.pause();
    player.seek(one[0]);
    return player.play(one[1]);
  },
  curve: (label) => showCurve(label),
  say(text) {
    parts.say.textContent = text;
  },
};

function counts() {
  const line = (name, videos) =>
    data.runs.map((run, r) => {
      const sum = countIn(videos, r);
      return make(
        "tr",
        {},
        make("th", { scope: "row" }, data.runs.length > 1 ? `${name}, ${run.name}` : name),
        make("td", {}, String(sum.left), make("span.of", {}, ` of ${sum.all}`)),
        ...(hasTruth
          ? [
              make("td", {}, sum.judged ? String(sum.hits) : "–"),
              make("td", {}, sum.judged ? String(sum.judged - sum.hits) : "–"),
              make("td", {}, sum.truth ? String(sum.truth - sum.hits) : "–"),
              make("td", {}, percent(sum.precision)),
              make("td", {}, percent(sum.recall)),
            ]
          : []),
      );
    });
  const heads = ["", "Shown", ...(hasTruth ? ["Hits", "False", "Missed", "Precision", "Recall"] : [])];
  const which = state.klass === null ? "" : ` of ${data.classes[state.klass]}`;
  return make(
    "table.numbers",
    {},
    make("caption.hide", {}, `Detections${which} at this threshold`),
    make(
      "thead",
      {},
      make(
        "tr",
        {},
        heads.map((text) => (text ? make("th", { scope: "col" }, text) : make("td"))),
      ),
    ),
    make("tbody", {}, line(`This video${which}`, [state.video]), line(`All videos${which}`, data.videos)),
  );
}

/** Shows everything that depends on threshold, IoU, classes and zoom. */
export function update() {
  const video = state.video;
  if (!video) return;
  const focus = document.activeElement?.dataset?.found;
  parts.rows.replaceChildren(...rows(video, on));
  styled(parts.sheet, { "--zoom": state.zoom });
  parts.counts.replaceChildren(counts());
  parts.legend.replaceChildren(legend(), make("div.choose", {}, checkboxes(), ...curveChoice()));
  parts.least.textContent = Number.isFinite(state.threshold) ? score(state.threshold) : "any";
  parts.slider.setAttribute("aria-valuetext", parts.least.textContent);
  parts.table.fill();
  parts.say.textContent = "Click to seek; click a bar to play it.";
  if (focus) parts.rows.querySelector(`[data-found="${focus}"]`)?.focus();
}

function showTime(now) {
  if (!parts.now) return;
  parts.now.textContent = clock(now);
  parts.seek.value = now;
  parts.seek.setAttribute("aria-valuetext", clock(now));
  styled(parts.sheet, { "--now": now / player.duration });
}

function showPlaying() {
  if (!parts.play) return;
  parts.play.replaceChildren(icon(player.playing ? ICONS.pause : ICONS.play));
  parts.play.setAttribute("aria-label", player.playing ? "Pause" : "Play");
}

/** Seeks to the start of the next detection, or of the one before. */
export function step(by) {
  const starts = [...new Set(shownDetections().map((x) => x.one[0]))].sort((a, b) => a - b);
  const next =
    by > 0 ? starts.find((start) => start > player.now + 0.02) : starts.findLast((start) => start < player.now - 0.02);
  if (next === undefined) return;
  player.seek(next);
  on.say(
    shownDetections()
      .filter((x) => x.one[0] === next)
      .map((x) => spoken(x.one))
      .join("; "),
  );
}
