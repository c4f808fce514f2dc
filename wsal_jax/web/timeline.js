// The timeline of a video: its classes over time, and what each model says of one of them.

import { clock, draw, make, score, styled, times } from "./dom.js";
import { MISSED, classesOf, curvesOf, data, hitsOf, overlap, secondsAt, state } from "./data.js";

const MANY = 8; // classes shown at first; the others have a checkbox

/** Ticks of a step that leaves about ten. */
function ticks(duration) {
  const step =
    [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600].find(
      (one) => duration / one <= 10 * state.zoom,
    ) ?? 7200;
  return Array.from({ length: Math.floor(duration / step + 1e-9) + 1 }, (_, i) => [i * step, step < 1 ? 1 : 0]);
}

function row(label, lane, kind = "") {
  return make(`div.row${kind}`, {}, make("div.label", {}, label), lane);
}

/** A lane with what lies in it at [start, end]. */
function place(element, video, start, end) {
  return styled(element, {
    "--start": Math.max(start, 0) / video.duration,
    "--length": (Math.min(end, video.duration) - Math.max(start, 0)) / video.duration,
  });
}

/** Lanes for segments that overlap: the index of the first lane that is free for each. */
function pack(segments) {
  const ends = [];
  return segments.map(([start, end]) => {
    let lane = ends.findIndex((last) => last <= start + 1e-9);
    if (lane < 0) lane = ends.length;
    ends[lane] = end;
    return lane;
  });
}

function lanes(video, items) {
  items.sort((a, b) => a.segment[0] - b.segment[0] || a.segment[1] - b.segment[1]);
  const at = pack(items.map((item) => item.segment));
  const lane = styled(make("div.lane"), { "--lanes": Math.max(1, ...at.map((i) => i + 1)) });
  items.forEach((item, i) => {
    lane.append(styled(place(item.element, video, ...item.segment.slice(0, 2)), { "--lane": at[i] }));
  });
  return lane;
}

/** "Diving, 12.4 to 17.9 s": what a button says aloud, and the line below the timeline. */
export function spoken(one) {
  return `${data.classes[one[2]]}, ${one[0].toFixed(1)} to ${one[1].toFixed(1)} s`;
}

/** What a detection is: its text, and "hit", "false" or "unknown". */
export function verdict(video, r, i) {
  const one = video.runs[r].found[i];
  const hits = hitsOf(video, r);
  const kind = !hits ? "unknown" : hits[i] === MISSED ? "false" : "hit";
  const best = Math.max(0, ...(video.truth ?? []).filter((t) => t[2] === one[2]).map((t) => overlap(one, t)));
  return { one, kind, best: video.truth ? best : NaN };
}

function bar(one, kind, text, on) {
  return make(`button.bar.${kind}`, {
    type: "button",
    "aria-label": text,
    title: text,
    click: () => on.bar(one),
    pointerenter: () => on.say(text),
    focus: () => on.say(text),
  });
}

function truthLane(video, label, on) {
  const taken = new Set();
  data.runs.forEach((_, r) => {
    const found = video.runs[r]?.found ?? [];
    (hitsOf(video, r) ?? []).forEach((hit, i) => found[i][3] >= state.threshold && taken.add(hit));
  });
  const items = video.truth.flatMap((one, i) => {
    if (one[2] !== label) return [];
    const kind = taken.has(i) ? "true" : "missed";
    const text = `${spoken(one)}, true${taken.has(i) ? "" : ", missed"}`;
    return [{ segment: one, element: bar(one, kind, text, on) }];
  });
  return lanes(video, items);
}

function foundLane(video, r, label, on) {
  const found = video.runs[r]?.found ?? [];
  const best = Math.max(1e-9, ...found.map((one) => one[3]));
  const items = found.flatMap((one, i) => {
    if (one[2] !== label || one[3] < state.threshold) return [];
    const { kind, best: iou } = verdict(video, r, i);
    const judged =
      kind === "unknown" ? "" : `, IoU ${iou.toFixed(2)} with the truth, ${kind === "hit" ? "a hit" : "false"}`;
    const element = bar(one, kind, `${spoken(one)}, score ${score(one[3])}${judged}`, on);
    element.dataset.found = `${r} ${i}`;
    return [{ segment: one, element: styled(element, { "--strength": Math.max(one[3], 0) / best }) }];
  });
  return lanes(video, items);
}

/** Steps that meet midway between snippets, in a box of 1000 x 100; `closed` down to the value 0. */
function steps(video, values, low, high, closed) {
  const x = (i) => ((1000 * secondsAt(video, i - 0.5)) / video.duration).toFixed(2);
  const y = (value) => (96 - (92 * (value - low)) / (high - low || 1)).toFixed(1);
  const line = values.map((value, i) => `${i ? "L" : "M"}${x(i)} ${y(value)}L${x(i + 1)} ${y(value)}`).join("");
  return closed ? `${line}L${x(values.length)} ${y(0)}L${x(0)} ${y(0)}Z` : line;
}

function curve(video, label, kind, values, low, high, text) {
  const tints = (video.truth ?? []).filter((one) => one[2] === label);
  return make(
    "div.lane.plot",
    {},
    tints.map((one) => place(make("span.tint"), video, one[0], one[1])),
    draw(
      `svg.${kind}`,
      { viewBox: "0 0 1000 100", preserveAspectRatio: "none", role: "img", "aria-label": text },
      draw("path.area", { d: steps(video, values, low, high, true) }),
      draw("path.line", { d: steps(video, values, low, high, false) }),
    ),
  );
}

function curveRows(video, label) {
  const several = data.runs.length > 1;
  return data.runs.flatMap((run, r) =>
    curvesOf(video, r, label).flatMap((model, i) => {
      const name = several ? `${run.name}, ${model.name}` : model.name;
      const low = Math.min(0, ...model.cas);
      const high = Math.max(0, ...model.cas);
      const text = `of ${name} for ${data.classes[label]}`;
      return [
        ...(several && !i ? [row(make("strong", {}, run.name), make("div.lane"), ".part")] : []),
        row(
          [
            make("span", {}, model.name),
            make(
              "span.what",
              { title: "Its highest value" },
              `CAS to ${Number(Math.max(...model.cas).toPrecision(2))}`,
            ),
          ],
          curve(video, label, "cas", model.cas, low, high, `Class activation ${text}`),
          ".curve",
        ),
        row(
          [make("span.again", {}, model.name), make("span.what", {}, "attention")],
          curve(video, label, "attention", model.attention, 0, 1, `Attention of ${name}`),
          ".curve.attends",
        ),
      ];
    }),
  );
}

function head(label, chosen, on) {
  const name = data.classes[label];
  return make(
    "button.class",
    { type: "button", "aria-pressed": String(chosen), title: `Curves of ${name}`, click: () => on.curve(label) },
    name,
  );
}

function film(video) {
  const { image, count, width, height } = video.strip;
  const lane = styled(make("div.lane.film-lane", { "aria-hidden": "true" }), { "--shape": `${width} / ${height}` });
  const fit = Math.min(count, 14 * state.zoom);
  for (let i = 0; i < fit; i++) {
    const k = Math.min(Math.floor(((i + 0.5) / fit) * count), count - 1);
    const at = { "--image": `url("${image}")`, "--count": count, "--at": count > 1 ? k / (count - 1) : 0 };
    lane.append(styled(make("i"), at));
  }
  return row("Film", lane, ".film-row");
}

/** The rows of the classes that are chosen; of many, the first few. */
export function shownClasses(video) {
  const all = classesOf(video, state.threshold).filter((label) => !state.hidden.has(label));
  const some = state.klass === null ? all : all.filter((label) => label === state.klass);
  return { shown: some.slice(0, MANY), more: Math.max(some.length - MANY, 0) };
}

function says(text) {
  return row("", make("div.lane.soft", {}, text));
}

function axis(video) {
  const marks = ticks(video.duration).filter(([at]) => at < 0.97 * video.duration || !at);
  const lane = marks.map(([at, digits]) =>
    styled(make("span", {}, clock(at, digits)), { "--start": at / video.duration }),
  );
  return row(make("span.soft", {}, "Time"), make("div.lane.axis", { "aria-hidden": "true" }, lane), ".axis-row");
}

function classRows(video, label, i, on) {
  const key = make("kbd", { "aria-hidden": "true" }, i < 9 ? String(i + 1) : "");
  const isTrue = (video.truth ?? []).some((one) => one[2] === label);
  const name = (run) => (data.runs.length > 1 ? run.name : "Found");
  return [
    row([key, head(label, label === state.curve, on)], make("div.lane"), ".head"),
    isTrue ? row("True", truthLane(video, label, on), ".truth") : null,
    ...data.runs.map((run, r) => row(name(run), foundLane(video, r, label, on), ".found")),
  ];
}

function scoreRows(video) {
  if (state.curve === null) return [];
  const name = data.classes[state.curve];
  const curves = curveRows(video, state.curve);
  if (!curves.length) return [says(`No curves of ${name}: the run kept no scores, or this class is unlikely here.`)];
  const text = make("div.lane.soft", {}, `What each model says of ${name}`);
  return [row(make("strong", {}, "Scores"), text, ".head.scores"), ...curves];
}

/** All rows; `on.bar(segment)`, `on.curve(label)` and `on.say(text)` are called. */
export function rows(video, on) {
  const { shown, more } = shownClasses(video);
  return [
    axis(video),
    video.strip ? film(video) : null,
    shown.map((label, i) => classRows(video, label, i, on)),
    shown.length ? null : says("Nothing here at this threshold."),
    more ? says(`${times(more, "more class", "more classes")}: raise the threshold or hide some.`) : null,
    scoreRows(video),
  ]
    .flat(2)
    .filter(Boolean);
}
