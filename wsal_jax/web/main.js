// The start of the page: tabs, keys, and the address.

import { byId, make } from "./dom.js";
import { data, state } from "./data.js";
import { RESULTS, prepareTabs, showTab, theme } from "./frame.js";
import { move, prepare, showList } from "./list.js";
import { open, playing, showRow, step, zoomBy } from "./video.js";
import { showResults } from "./results.js";

const TABS = ["videos", "results"];

function choose(name) {
  showTab(TABS, name);
  if (name !== "videos") playing()?.pause();
}

// ---- keys

const KEYS = [
  ["Space", "play, pause"],
  ["← →", "1 s back, on"],
  ["Shift ← →", "one frame back, on"],
  ["[ ]", "previous, next detection"],
  ["1 – 9", "curves of the class with this number"],
  ["P N", "previous, next video"],
  ["+ −", "zoom"],
  ["/", "search"],
  ["?", "these keys"],
];

function help() {
  const dialog = byId("help");
  dialog.append(
    make("h2", { id: "help-title" }, "Keys"),
    make(
      "dl.keys",
      {},
      KEYS.flatMap(([key, what]) => [make("dt", {}, make("kbd", {}, key)), make("dd", {}, what)]),
    ),
    make("form", { method: "dialog" }, make("button", {}, "Close")),
  );
  byId("help-open").addEventListener("click", () => dialog.showModal());
}

function press(event) {
  const player = playing();
  const sign = event.key === "ArrowLeft" ? -1 : 1;
  switch (event.key) {
    case " ":
      return player.toggle();
    case "ArrowLeft":
    case "ArrowRight":
      if (event.shiftKey) player.pause();
      return player.seek(player.now + sign * (event.shiftKey ? player.frame : 1));
    case "[":
      return step(-1);
    case "]":
      return step(1);
    case "n":
      return move(1);
    case "p":
      return move(-1);
    case "+":
      return zoomBy(2);
    case "-":
      return zoomBy(0.5);
    case "/":
      return byId("search").focus();
    default:
      return showRow(Number(event.key) - 1);
  }
}

function keys() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
    const { target } = event;
    if (event.key === "Escape" && target === byId("search")) return target.blur();
    if (target.matches("input:not([type=range], [type=checkbox]), select, textarea")) return;
    if (event.key === " " && target.closest("button, summary, a, input")) return; // they have their own use for it
    if (event.key.startsWith("Arrow") && target.matches("#threshold, [role=tab]")) return;
    if (event.key === "?") return byId("help").showModal();
    if (!/^([ [\]np+\-/1-9]|Arrow(Left|Right))$/.test(event.key) || byId("videos").hidden || !state.video) return;
    event.preventDefault();
    press(event);
  });
}

// ---- the address

function follow() {
  const wanted = decodeURIComponent(location.hash.replace(/^#video=/, ""));
  if (location.hash === RESULTS) return choose("results");
  const video = data.videos.find((one) => one.id === wanted);
  if (video && video !== state.video) open(video);
  return choose(video || location.hash.startsWith("#video=") || data.videos.length ? "videos" : "results");
}

document.body.dataset.runs = data.runs.length;
byId("title").textContent = data.title;
document.title = `${data.title} · wsal_jax`;
theme();
prepareTabs(TABS, choose, (tab) => {
  if (tab === "videos" && state.video) history.replaceState(null, "", `#video=${encodeURIComponent(state.video.id)}`);
});
help();
keys();
prepare();
showResults(byId("results"));
showList();
if (data.videos.length) {
  const wanted = decodeURIComponent(location.hash.replace(/^#video=/, ""));
  const tab = location.hash;
  open(data.videos.find((one) => one.id === wanted) ?? data.videos[0]);
  if (tab === RESULTS) history.replaceState(null, "", tab);
} else {
  byId("detail").replaceChildren(make("p.empty", {}, "No videos here: the run has no detections.json."));
}
follow();
addEventListener("hashchange", follow);
