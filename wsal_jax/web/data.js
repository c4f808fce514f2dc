// What the page shows: the data that Python put in, and what is counted in it.

import { byId } from "./dom.js";

/** See `wsal_jax.page`, which writes it. */
export const data = JSON.parse(byId("data").textContent);

export const MISSED = -1;

/** What the reader has chosen. */
export const state = {
  video: null, // an entry of data.videos
  iou: data.iou,
  rank: 0, // the threshold: this share of all detections is hidden
  threshold: -Infinity,
  klass: null, // index of the class that the list and the counts are limited to
  curve: null, // index of the class whose curves are shown
  hidden: new Set(), // classes without rows
  zoom: 1,
};

export const hasTruth = data.videos.some((video) => video.truth);

/** The scores of all detections, ascending: the slider moves through them, not through the numbers between them. */
const scores = Float64Array.from(
  data.videos.flatMap((video) => video.runs.flatMap((run) => (run ? run.found.map((one) => one[3]) : []))),
).sort();

/** Hides the share `rank` of all detections, those of the lowest scores. */
export function setRank(rank) {
  state.rank = rank;
  const at = Math.min(Math.round(rank * scores.length), scores.length - 1);
  state.threshold = rank > 0 && at >= 0 ? scores[at] : -Infinity;
}

/** The share to hide at first: all but ten detections a video and run. No truth is looked at for it. */
export function firstRank() {
  const shown = 10 * data.videos.length * data.runs.length;
  return scores.length > shown ? Math.floor(200 * (1 - shown / scores.length)) / 200 : 0;
}

export function overlap(a, b) {
  const both = Math.min(a[1], b[1]) - Math.max(a[0], b[0]);
  if (both <= 0) return 0;
  return both / (a[1] - a[0] + b[1] - b[0] - both);
}

/**
 * Which true segment each detection of a video hits, as its index; MISSED of those that hit none.
 *
 * The rule of the ActivityNet evaluator: the best detection first, each takes of the free true segments of its class the
 * one that it overlaps most, of equal ones the last. A threshold takes away the weakest, so it changes no other's hit.
 */
export function match(found, truth, iou) {
  const taken = new Set();
  const hits = new Array(found.length).fill(MISSED);
  const order = found.map((_, i) => i).sort((a, b) => found[b][3] - found[a][3] || a - b);
  for (const i of order) {
    let best = iou;
    truth.forEach((one, j) => {
      if (one[2] !== found[i][2] || taken.has(j)) return;
      const much = overlap(found[i], one);
      if (much >= best) [best, hits[i]] = [much, j];
    });
    if (hits[i] !== MISSED) taken.add(hits[i]);
  }
  return hits;
}

const matched = new Map();

/** `match` of a run's detections in a video at the chosen IoU; null where the truth is not known. */
export function hitsOf(video, r) {
  const run = video.runs[r];
  if (!run || !video.truth) return null;
  const key = `${state.iou} ${r} ${video.id}`;
  if (!matched.has(key)) matched.set(key, match(run.found, video.truth, state.iou));
  return matched.get(key);
}

/** How many detections of a run are left in these videos, of how many; hits and true segments where truth is known. */
export function countIn(videos, r) {
  const sum = { all: 0, left: 0, judged: 0, hits: 0, truth: 0 };
  const counts = (label) => state.klass === null || state.klass === label;
  for (const video of videos) {
    if (!video.runs[r]) continue;
    const hits = hitsOf(video, r);
    sum.truth += (video.truth ?? []).filter((one) => counts(one[2])).length;
    video.runs[r].found.forEach((one, i) => {
      if (!counts(one[2])) return;
      sum.all += 1;
      if (one[3] < state.threshold) return;
      sum.left += 1;
      sum.judged += hits ? 1 : 0;
      sum.hits += hits && hits[i] !== MISSED ? 1 : 0;
    });
  }
  return { ...sum, precision: sum.hits / sum.judged, recall: sum.hits / sum.truth };
}

/** Misses and false detections of all runs. */
export function errorsIn(video) {
  if (!video.truth) return 0;
  let errors = 0;
  data.runs.forEach((_, r) => {
    const sum = countIn([video], r);
    errors += sum.truth - sum.hits + sum.judged - sum.hits;
  });
  return errors;
}

/** The classes of a video: the true ones in order, then those found, the best score first. */
export function classesOf(video, threshold = -Infinity) {
  const best = new Map();
  for (const run of video.runs) {
    for (const one of run?.found ?? []) {
      if (one[3] >= threshold) best.set(one[2], Math.max(one[3], best.get(one[2]) ?? -Infinity));
    }
  }
  const truth = (video.truth ?? []).map((one) => one[2]).sort((a, b) => a - b);
  return [...new Set([...truth, ...[...best].sort((a, b) => b[1] - a[1] || a[0] - b[0]).map((one) => one[0])])];
}

/** Bytes that Python wrote as base64. */
function bytes(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

/** The curves of a class by model of a run: `[{name, video, attention, cas}]`; empty where they were not kept. */
export function curvesOf(video, r, label) {
  const kept = video.runs[r]?.scores;
  const k = kept ? kept.classes.indexOf(label) : -1;
  if (k < 0) return [];
  return kept.models.map((model) => {
    const n = video.length;
    const between = (low, high) => (byte) => low + (byte / 255) * (high - low);
    const cas = Array.from(bytes(model.cas).subarray(k * n, (k + 1) * n), between(model.low[k], model.high[k]));
    const attention = Array.from(bytes(model.attention), between(0, 1));
    return { name: model.name, video: model.video[k], cas, attention };
  });
}

/** Seconds at a snippet's index; see `wsal_jax.times`. */
export const secondsAt = (video, index) => (video.offset + index * video.stride) / video.fps;
