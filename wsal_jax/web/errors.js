// What the errors of a run are, after DETAD; see `wsal_jax.analyse`.

import { make, number, percent, styled } from "./dom.js";
import { data } from "./data.js";
import { barCell, card, several, tableOf } from "./cards.js";

function profile(analysis) {
  const types = Object.keys(analysis.profile);
  const ranks = analysis.profile[types[0]].map((_, i) => i);
  const totals = ranks.map((i) => types.reduce((sum, type) => sum + analysis.profile[type][i], 0));
  const rows = ranks
    .filter((i) => totals[i])
    .map((i) =>
      make(
        "tr",
        {},
        make("th", { scope: "row" }, `${i + 1}G`),
        make(
          "td.stack-cell",
          {},
          make(
            "div.stack",
            { "aria-hidden": "true" },
            types.map((type, t) =>
              styled(make(`span.type${t}`, { title: `${type}: ${analysis.profile[type][i]}` }), {
                "--share": totals[i] ? analysis.profile[type][i] / totals[i] : 0,
              }),
            ),
          ),
        ),
        types.map((type) => make("td", {}, totals[i] ? percent(analysis.profile[type][i] / totals[i]) : "–")),
        make("td", {}, String(totals[i])),
      ),
    );
  const mark = (t) => make(`span.swatch.type${t}`, { "aria-hidden": "true" });
  const heads = ["Rank", "", ...types.map((type, t) => [mark(t), type]), "Detections"];
  return tableOf("numbers.profile", "Kinds of detections by rank (G: the true segments of the class)", heads, rows);
}

function costs(analysis) {
  const names = Object.keys(analysis.mean_ap_without);
  const gain = (of, now) => names.map((name) => of[name] - now);
  const gains = gain(analysis.mean_ap_without, analysis.mean_ap);
  const normal = gain(analysis.mean_ap_n_without, analysis.mean_ap_n);
  const most = Math.max(...gains, ...normal, 1e-9);
  const body = names.map((name, i) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, name),
      barCell(gains[i], most, number(100 * gains[i])),
      barCell(normal[i], most, number(100 * normal[i])),
    ),
  );
  return tableOf(
    "numbers",
    "What mAP would gain without each kind of error, in points",
    ["Error", "mAP", "mAP_N"],
    body,
  );
}

function buckets(name, of) {
  const range = (i) => (i < of.bounds.length ? `≤ ${of.bounds[i]}` : `> ${of.bounds.at(-1)}`);
  const most = Math.max(...of.mean_ap_n.map((x) => x ?? 0), 1e-9);
  const body = of.buckets.map((bucket, i) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, bucket),
      make("td.soft", {}, range(i)),
      make("td", {}, String(of.count[i])),
      barCell(of.mean_ap_n[i], most, percent(of.mean_ap_n[i] ?? NaN, 1)),
      barCell(of.missed[i], 1, percent(of.missed[i] ?? NaN, 1), ".bad"),
    ),
  );
  return tableOf("numbers", `By ${name}`, ["", "", "True", "mAP_N", "Missed"], body);
}

/** A card of each run that has an analysis. */
export function errors() {
  const runs = data.runs.filter((run) => run.analysis);
  return runs.map((run) => {
    const a = run.analysis;
    return card(
      several ? `Errors of ${run.name}` : "Errors",
      make(
        "p",
        {},
        `${a.num_detections} detections, ${a.num_true} true segments, IoU ${a.iou}: mAP ${percent(a.mean_ap ?? NaN, 1)}, ` +
          `mAP_N ${percent(a.mean_ap_n ?? NaN, 1)}, missed ${percent(a.missed ?? NaN, 1)}.`,
      ),
      make(
        "div.columns",
        {},
        profile(a),
        costs(a),
        ...Object.entries(a.characteristics).map(([name, of]) => buckets(name, of)),
      ),
      make(
        "p.soft",
        {},
        "After DETAD (Alwassel et al., ECCV 2018); first seed. mAP_N is mAP with a precision that does not depend on how many true segments a class has.",
      ),
    );
  });
}
