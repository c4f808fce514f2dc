// The page of images: filters, and what they leave.

import { byId, make, times } from "./dom.js";
import { data } from "./data.js";
import { several } from "./cards.js";
import { RESULTS, prepareTabs, showTab, theme } from "./frame.js";
import { VERDICTS, shot } from "./heat.js";
import { showResults } from "./results.js";

const PARTS = ["images", "results"];
const STEP = 48; // images that are shown at once

let limit = STEP; // so many are shown

const verdictsOf = (image) => image.runs.map((run) => run?.verdict ?? null);

const FILTERS = {
  right: (verdicts) => verdicts.includes("right"),
  wrong: (verdicts) => verdicts.some((one) => one && one !== "right"),
  class: (verdicts) => verdicts.includes("class"),
  box: (verdicts) => verdicts.includes("box"),
  differ: (verdicts) => new Set(verdicts).size > 1,
};

function chosen() {
  const words = byId("search").value.trim().toLowerCase();
  const klass = byId("filter-class").value;
  const rule = FILTERS[byId("filter-verdict").value];
  return data.images.filter((image) => {
    const labels = [...image.labels, ...image.runs.flatMap((run) => (run?.top ? [run.top[0]] : []))];
    if (klass !== "" && !labels.includes(Number(klass))) return false;
    if (rule && !rule(verdictsOf(image))) return false;
    return [image.id, ...labels.map((label) => data.classes[label])].some((name) => name.toLowerCase().includes(words));
  });
}

function counted(images) {
  const sums = data.runs.flatMap((run, r) => {
    const known = images.map((image) => verdictsOf(image)[r]).filter(Boolean);
    const right = known.filter((one) => one === "right").length;
    return known.length ? [`${several ? `${run.name}: ` : ""}${right} of ${known.length} right`] : [];
  });
  return [`${images.length} of ${times(data.images.length, "image")}`, ...sums].join(" · ");
}

function showGallery() {
  const images = chosen();
  const wanted = byId("map").value;
  byId("gallery").replaceChildren(...images.slice(0, limit).map((image) => shot(image, wanted)));
  byId("count").textContent = images.length ? counted(images) : "No image matches. Clear the search or the filters.";
  byId("more").hidden = images.length <= limit;
  byId("more").textContent = `Show ${Math.min(STEP, images.length - limit)} more`;
}

function prepareFilters() {
  const option = ([value, text]) => make("option", { value }, text);
  const classes = data.classes.map((name, i) => [String(i), name]);
  const judged = [
    ["right", "right"],
    ["wrong", "wrong"],
    ["class", VERDICTS.class],
    ["box", VERDICTS.box],
  ];
  if (several) judged.push(["differ", "runs differ"]);
  byId("filter-class").append(...[["", "all classes"], ...classes].map(option));
  byId("filter-verdict").append(...[["", "right and wrong"], ...judged].map(option));
  byId("filter-verdict").closest("label").hidden = !data.images.some((image) => verdictsOf(image).some(Boolean));
  byId("map").append(
    ...[
      ["found", "the class found"],
      ["true", "the true class"],
    ].map(option),
  );
  for (const id of ["search", "filter-class", "filter-verdict", "map"]) {
    byId(id).addEventListener("input", () => {
      limit = STEP;
      showGallery();
    });
  }
  const paint = () => byId("images").style.setProperty("--heat", byId("heat").value);
  byId("heat").addEventListener("input", paint);
  paint();
  byId("more").addEventListener("click", () => {
    limit += STEP;
    showGallery();
  });
}

function showElsewhere() {
  const links = data.elsewhere.flatMap(([text, href], i) => [i ? ", " : "", make("a", { href }, text)]);
  byId("elsewhere").hidden = !links.length;
  byId("elsewhere").replaceChildren("More images: ", ...links);
}

byId("title").textContent = data.title;
document.title = `${data.title} · wsal_jax`;
document.body.dataset.runs = data.runs.length;
theme();
prepareTabs(
  PARTS,
  (name) => showTab(PARTS, name),
  (name) => name === "images" && history.replaceState(null, "", "#tab=images"),
);
prepareFilters();
showResults(byId("results"));
showElsewhere();
showGallery();
showTab(PARTS, location.hash === RESULTS || !data.images.length ? "results" : "images");
