// The detections of the chosen video as a table.

import { clock, make, score, times } from "./dom.js";
import { data, state } from "./data.js";
import { spoken, verdict } from "./timeline.js";

let sorting = { column: "start", down: false };

/** The detections left, of all runs, as `{r, i, one, kind, best}`. */
export function shownDetections() {
  return state.video.runs.flatMap((run, r) =>
    (run?.found ?? []).flatMap((one, i) => {
      const hidden =
        one[3] < state.threshold || state.hidden.has(one[2]) || (state.klass !== null && state.klass !== one[2]);
      return hidden ? [] : [{ r, i, ...verdict(state.video, r, i) }];
    }),
  );
}

function columns() {
  return [
    { name: "Start", key: "start", value: (x) => x.one[0] },
    { name: "End", key: "end", value: (x) => x.one[1] },
    { name: "Class", key: "class", value: (x) => data.classes[x.one[2]] },
    { name: "Score", key: "score", value: (x) => x.one[3], text: (x) => score(x.one[3]) },
    ...(state.video.truth
      ? [
          { name: "IoU", key: "iou", value: (x) => x.best, text: (x) => x.best.toFixed(2) },
          { name: "", key: "kind", value: (x) => x.kind, text: (x) => x.kind },
        ]
      : []),
    ...(data.runs.length > 1 ? [{ name: "Run", key: "run", value: (x) => data.runs[x.r].name }] : []),
  ].map((column) => ({
    text: (x) => (typeof column.value(x) === "number" ? clock(column.value(x)) : column.value(x)),
    ...column,
  }));
}

function tableRows(shown, play) {
  const all = columns();
  const { value } = all.find((column) => column.key === sorting.column) ?? all[0];
  const sorted = shown.sort((a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : a.one[0] - b.one[0]));
  if (sorting.down) sorted.reverse();
  const cell = (column, i, x) => {
    if (column.key === "kind") return make(`span.verdict.${x.kind}`, {}, column.text(x));
    if (i) return column.text(x);
    const text = `${column.text(x)}: play ${spoken(x.one)}`; // begins as what is seen
    return make("button.link", { type: "button", "aria-label": text, click: () => play(x.one) }, column.text(x));
  };
  return sorted.map((x) =>
    make(
      "tr",
      { class: x.kind },
      all.map((column, i) => make("td", {}, cell(column, i, x))),
    ),
  );
}

/** The table, and a function that fills it anew; `play(segment)` is called. */
export function table(video, play) {
  const [summary, body] = [make("summary"), make("tbody")];
  const fill = () => {
    const shown = shownDetections();
    summary.textContent = `${times(shown.length, "detection")} as a table`;
    body.replaceChildren(...tableRows(shown, play));
  };
  const heads = columns().map((column) => {
    const head = make("th", { scope: "col", "data-key": column.key });
    const sort = () => {
      sorting = { column: column.key, down: sorting.column === column.key && !sorting.down };
      for (const one of head.parentElement.children) {
        const way = sorting.down ? "descending" : "ascending";
        one.setAttribute("aria-sort", one.dataset.key === sorting.column ? way : "none");
      }
      fill();
    };
    head.append(make("button.link", { type: "button", click: sort }, column.name || "Verdict"));
    return head;
  });
  const name = `Detections in ${video.id}`;
  const content = [make("caption.hide", {}, name), make("thead", {}, make("tr", {}, heads)), body];
  const around = make(
    "div.wide",
    { tabindex: 0, role: "group", "aria-label": name },
    make("table.detections", {}, content),
  );
  return { element: make("details.found-table", { open: true }, summary, around), fill };
}
