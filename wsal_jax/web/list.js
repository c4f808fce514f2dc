// The list of videos, with its filters.

import { byId, clock, make, times } from "./dom.js";
import { classesOf, countIn, data, errorsIn, firstRank, hasTruth, setRank, state } from "./data.js";
import { open, update } from "./video.js";

function listed() {
  const words = byId("search").value.trim().toLowerCase();
  return data.videos.filter((video) => {
    const classes = classesOf(video, state.threshold);
    if (state.klass !== null && !classes.includes(state.klass)) return false;
    if (byId("filter-errors").checked && !errorsIn(video)) return false;
    const names = [video.id, ...classes.map((label) => data.classes[label])];
    return names.some((name) => name.toLowerCase().includes(words));
  });
}

function entry(video) {
  const sums = data.runs.map((_, r) => countIn([video], r));
  const facts = video.truth
    ? `${sums[0].truth} true, ${sums.map((sum) => `${sum.hits} hit`).join(" / ")}, ` +
      sums.map((sum) => `${sum.judged - sum.hits} false`).join(" / ")
    : `${sums.map((sum) => sum.left).join(" / ")} found`;
  return make(
    "li",
    {},
    make(
      "button.entry",
      {
        type: "button",
        "aria-current": video === state.video ? "true" : null,
        click: () => open(video),
      },
      make("span.id", {}, video.id),
      make("span.time", {}, clock(video.duration, 0)),
      make("span.facts", {}, facts),
    ),
  );
}

/** Shows the list anew, for the filters and the threshold. */
export function showList() {
  const found = listed();
  byId("list").replaceChildren(...found.map(entry));
  byId("count").textContent = found.length
    ? `${found.length} of ${times(data.videos.length, "video")}`
    : "No video matches. Clear the search or the filters.";
  const words = byId("search").value.trim().toLowerCase();
  const others = data.elsewhere.filter(([id]) => id.toLowerCase().includes(words));
  byId("elsewhere").hidden = !others.length;
  byId("elsewhere").replaceChildren(
    others.length ? "On other pages: " : "",
    ...others
      .slice(0, 20)
      .flatMap(([id, href], i) => [i ? ", " : "", make("a", { href: `${href}#video=${encodeURIComponent(id)}` }, id)]),
    others.length > 20 ? ` and ${others.length - 20} more` : "",
  );
  byId("list").querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
}

/** The video `by` places further in the list. */
export function move(by) {
  const found = listed();
  const at = found.indexOf(state.video);
  const next = found[Math.min(Math.max(at + by, 0), found.length - 1)];
  if (next && next !== state.video) open(next);
}

/** Fills the filters and sets the first threshold. */
export function prepare() {
  setRank(firstRank());
  const choose = byId("filter-class");
  choose.append(
    make("option", { value: "" }, "all classes"),
    ...data.classes.map((name, i) => make("option", { value: i }, name)),
  );
  choose.addEventListener("change", () => {
    state.klass = choose.value === "" ? null : Number(choose.value);
    if (state.klass !== null) state.curve = state.klass;
    update();
    showList();
  });
  byId("filter-errors").closest("label").hidden = !hasTruth;
  byId("filter-errors").addEventListener("change", showList);
  byId("search").addEventListener("input", showList);
}
