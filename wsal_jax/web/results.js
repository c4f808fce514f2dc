// The tab of results: tables, curves of training, errors, and what was run.

import { draw, make, number, percent, times } from "./dom.js";
import { data } from "./data.js";
import { barCell, card, several, tableOf } from "./cards.js";
import { errors } from "./errors.js";

const FLOORS = ["whole video", "shuffled", "whole image", "centred square", "mean training box"];

/** What the tables are of, and how to read them. */
const TEXTS = data.images
  ? {
      corner: "%, at IoU 0.5",
      notes:
        "In percent. Top-1: the most probable class is right, and its box has an IoU of 0.5 with a true one; GT-known: the box " +
        "of the true class. MaxBoxAcc takes the threshold that is best for the test images: a bound. ± is the standard " +
        "deviation over seeds; of one seed, the small numbers are the 95 % interval over resampled images. The rows in " +
        "gray do not look at the image, or shuffle the map: a model must beat them.",
      attentionCaption: "Attention",
      attentionCorner: "%",
      attentionNotes:
        "Its mean over all images, its standard deviation within an image, and the share of images in which it is constant and says nothing.",
    }
  : {
      corner: "mAP@IoU",
      notes:
        "Mean AP in percent by temporal IoU. ± is the standard deviation over seeds; of one seed, the small " +
        "numbers are the 95 % interval over resampled test videos. “whole video” and “shuffled” localize nothing: a model must beat them.",
      attentionCaption: "Attention against the true segments",
      attentionCorner: "% of true snippets",
      attentionNotes:
        "Snippets, in percent of the true ones (gt): those where the attention is above one half (att) without being true, " +
        "true ones that it leaves out, and the same of the snippets that the classifier alone would take (cls).",
    };

/** "38.2 ± 1.1" above "95 %: 35.0 to 41.2", and every seed's on hover. */
function valueCell(cell, best) {
  if (!cell) return make("td", {}, "–");
  const seeds = cell.values.length;
  const spread = seeds > 1 ? make("span.soft", {}, ` ±${number(cell.std)}`) : "";
  const [low, high] = cell.intervals?.length === 1 ? cell.intervals[0] : [NaN, NaN];
  const interval = Number.isFinite(low) ? make("span.interval", {}, `${number(low)}–${number(high)}`) : "";
  const each = seeds > 1 ? `seeds: ${cell.values.map((x) => number(x)).join(", ")}` : null;
  return make(best ? "td.best" : "td", { title: each }, number(cell.mean), spread, interval);
}

/** One table of all runs: a group of rows for each; the best value of a column is bold. */
function resultsTable(key, caption, corner) {
  const runs = data.runs.filter((run) => run.results && Object.keys(run.results[key] ?? {}).length);
  if (!runs.length) return null;
  const heads = [...new Set(runs.flatMap((run) => Object.values(run.results[key]).flatMap(Object.keys)))];
  const floor = (name) => FLOORS.includes(name);
  const best = heads.map((head) =>
    Math.max(
      ...runs.flatMap((run) =>
        Object.entries(run.results[key])
          .filter(([name]) => !floor(name))
          .map(([, row]) => row[head]?.mean ?? -Infinity),
      ),
    ),
  );
  const bodies = runs.map((run) =>
    make(
      "tbody",
      {},
      several ? make("tr.group", {}, make("th", { scope: "rowgroup", colspan: heads.length + 1 }, run.name)) : null,
      Object.entries(run.results[key]).map(([name, row]) =>
        make(
          floor(name) ? "tr.floor" : "tr",
          {},
          make("th", { scope: "row" }, name),
          heads.map((head, i) => valueCell(row[head], key === "rows" && row[head]?.mean === best[i])),
        ),
      ),
    ),
  );
  return tableOf("numbers.plain", caption, [corner, ...heads], bodies);
}

function summary() {
  const one = data.images ? "image" : "video";
  const about = data.runs.flatMap((run) => {
    const r = run.results;
    if (!r)
      return [make("p", {}, `${several ? `${run.name}: ` : ""}nothing was measured: no test ${one} is annotated.`)];
    const seeds = r.seeds ? `${times(r.seeds.length, "seed")} (${r.seeds.join(", ")})` : "";
    const known = times(r.classes, "class", "classes");
    const facts = data.images
      ? [r.dataset, r.supervision, times(r.images, "test image"), known, times(r.boxes, "box", "boxes")]
      : [r.dataset, `rule ${r.protocol}`, r.supervision, times(r.videos, "test video"), known];
    facts.push(
      ...(data.images ? [`threshold ${r.threshold}`, `small: ${r.small}`] : [times(r.instances, "instance")]),
      seeds,
    );
    return [make("p", {}, several ? make("strong", {}, `${run.name}: `) : "", facts.filter(Boolean).join(" · "))];
  });
  return card("Results", ...about, resultsTable("rows", "Results", TEXTS.corner), make("p.soft", {}, TEXTS.notes));
}

function attention() {
  const content = resultsTable("attention", TEXTS.attentionCaption, TEXTS.attentionCorner);
  return content && card("Attention", content, make("p.soft", {}, TEXTS.attentionNotes));
}

function classes() {
  const runs = data.runs.filter((run) => run.per_class);
  if (!runs.length) return null;
  const names = data.classes.filter((name) => runs.some((run) => name in run.per_class));
  const difference = (name, run) => run.per_class[name] - runs[0].per_class[name];
  const first = runs[0];
  const rows = names.map((name) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, name),
      make("td", {}, String(first.true_segments[name] ?? 0)),
      runs.map((run) => barCell(run.per_class[name], 1, percent(run.per_class[name], 1))),
      runs.slice(1).map((run) => {
        const d = difference(name, run);
        const text = Number.isFinite(d) ? `${d > 0 ? "+" : d < 0 ? "−" : "±"}${number(100 * Math.abs(d))}` : "–";
        return make(d > 0 ? "td.up" : d < 0 ? "td.down" : "td", {}, text);
      }),
    ),
  );
  const heads = [
    "Class",
    "True",
    ...runs.map((run) => (several ? run.name : "AP")),
    ...runs.slice(1).map((run) => `${run.name} − ${first.name}`),
  ];
  return card(
    several ? "Classes, and how the runs differ" : "Classes",
    tableOf("numbers.plain", "Average precision by class", heads, rows),
    make("p.soft", {}, `AP of each class at IoU ${data.iou}, first seed${several ? "; differences in points" : ""}.`),
  );
}

// ---- training

const tidy = (x) =>
  x !== 0 && (Math.abs(x) < 0.01 || Math.abs(x) >= 1e4) ? x.toExponential(1) : String(Number(x.toPrecision(3)));

/** Thin lines of all seeds and their mean, over steps. */
function lineChart(title, steps, values) {
  const [w, h, left, bottom, top] = [320, 150, 44, 20, 8];
  const finite = values.flat().filter(Number.isFinite);
  if (!finite.length) return null;
  const [low, high] = [Math.min(...finite), Math.max(...finite)];
  const last = steps.at(-1) || 1;
  const x = (step) => left + ((w - left - 8) * step) / last;
  const y = (value) => top + (h - top - bottom) * (1 - (value - low) / (high - low || 1));
  const path = (series) =>
    series
      .map((v, i) => [v, i])
      .filter(([v]) => Number.isFinite(v))
      .map(([v, i], k) => `${k ? "L" : "M"}${x(steps[i]).toFixed(1)} ${y(v).toFixed(1)}`)
      .join("");
  const seeds = values[0].map((_, s) => values.map((row) => row[s]));
  const mean = values.map((row) => row.reduce((a, b) => a + b, 0) / row.length);
  const text = (at, anchor, content) => draw("text", { x: at[0], y: at[1], "text-anchor": anchor }, content);
  const spoken = `${title}: from ${tidy(mean[0])} to ${tidy(mean.at(-1))} over ${last} steps`;
  return make(
    "figure.chart",
    {},
    make("figcaption", {}, title),
    draw(
      "svg",
      { viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": spoken },
      draw("path.grid", { d: `M${left} ${y(low)}H${w - 8}M${left} ${y(high)}H${w - 8}` }),
      ...(seeds.length > 1 ? seeds.map((series) => draw("path.seed", { d: path(series) })) : []),
      draw("path.mean", { d: path(mean) }),
      text([left - 6, y(high) + 4], "end", tidy(high)),
      text([left - 6, y(low) + 4], "end", tidy(low)),
      text([left, h - 4], "start", "0"),
      text([w - 8, h - 4], "end", `step ${last}`),
    ),
  );
}

function training() {
  const groups = data.runs.flatMap((run) => {
    const models = [...new Set(run.curves.map((one) => one.model))];
    return models.map((model) =>
      make(
        "div.group",
        {},
        make("h3", {}, several ? `${run.name}, ${model}` : model),
        make(
          "div.charts",
          {},
          run.curves
            .filter((one) => one.model === model)
            .map((one) => lineChart(one.metric, one.steps, one.values))
            .filter(Boolean),
        ),
      ),
    );
  });
  if (!groups.length) return null;
  return card(
    "Training",
    make("p.soft", {}, "Each metric over steps; thin lines are seeds, the thick one their mean."),
    make("div.groups", {}, groups),
  );
}

// ---- what was run

function commands() {
  const names = [...new Set(data.runs.flatMap((run) => run.config.map(([name]) => name)))];
  const of = data.runs.map((run) => new Map(run.config));
  const differs = (name) => new Set(of.map((config) => config.get(name))).size > 1;
  const rows = (which) =>
    which.map((name) =>
      make(
        several && differs(name) ? "tr.differs" : "tr",
        {},
        make("th", { scope: "row" }, name),
        of.map((config) => make("td", {}, config.get(name) ?? "–")),
      ),
    );
  const body = several ? [...names.filter(differs), ...names.filter((name) => !differs(name))] : names;
  return card(
    "What was run",
    data.runs.map((run) => [
      several ? make("h3", {}, run.name) : null,
      run.command
        ? make("pre", { tabindex: 0 }, run.command)
        : make("p.soft", {}, "The run does not say by what command it was made."),
      make("p.soft", {}, run.folder),
    ]),
    make(
      "details",
      { open: several && names.some(differs) },
      make("summary", {}, several ? "Options; those that differ come first" : "All options"),
      tableOf(
        "options.plain",
        "Options",
        ["Option", ...data.runs.map((run) => (several ? run.name : "Value"))],
        rows(body),
      ),
    ),
  );
}

/** All of the tab. */
export function showResults(place) {
  place.replaceChildren(
    ...[summary(), classes(), attention(), training(), ...errors(), commands()].filter(Boolean),
    make("p.soft.made", {}, data.made),
  );
}
