"use strict";
// The page of runs. Everything from a log, a config or a sample reaches the page as text (`textContent`), never as markup;
// what plotly draws is escaped by `safe`, since plotly reads a few tags in its labels.

const COLOURS = ["#3572d6", "#e0752d", "#2a9d74", "#b74a92", "#8465d6", "#c59b16", "#2f9fb5", "#8b8f98", "#d1495b", "#6a8f2a"];
const XS = { step: "step", tokens: "tokens", hours: "hours since the start" };
const view = { x: "step", smooth: true, hidden: new Set(), picked: {}, theme: null };
let data = JSON.parse(document.getElementById("data").textContent);
let charts = [];

// Small things.

function h(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(node.style, value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  for (const child of children.flat(9)) if (child !== null && child !== undefined && child !== false) node.append(child);
  return node;
}
const colour = (i) => COLOURS[i % COLOURS.length];
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const safe = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const cut = (text, limit) => (text.length <= limit ? text : text.slice(0, limit - 1) + "\u2026");
const has = (value) => value !== null && value !== undefined;
const dot = (i) => h("span", { class: "dot", style: { background: colour(i) } });
const isOne = () => data.runs.length === 1;

function whole(value) { return has(value) ? Math.round(value).toLocaleString("en-US") : "-"; }
function digits(value, num = 4) { return has(value) ? Number(value).toFixed(num) : "-"; }
function percent(value, num = 1) { return has(value) ? (100 * value).toFixed(num) + " %" : "-"; }
function compact(value, unit = "") {
  if (!has(value)) return "-";
  for (const [size, prefix] of [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (Math.abs(value) >= 0.9995 * size) return Number((value / size).toPrecision(3)) + " " + prefix + unit;
  return Number(value.toPrecision(3)) + (unit ? " " + unit : "");
}
function bytes(value) { return has(value) ? (value >= 2 ** 30 ? (value / 2 ** 30).toFixed(2) + " GiB" : value >= 2 ** 20 ? (value / 2 ** 20).toFixed(0) + " MiB" : (value / 2 ** 10).toFixed(0) + " KiB") : "-"; }
function duration(seconds) {
  if (!has(seconds)) return "-";
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return (seconds < 10 ? Number(seconds).toFixed(1) : s) + " s";
  for (const [size, unit, sub, name] of [[86400, "d", 3600, "h"], [3600, "h", 60, "m"], [60, "m", 1, "s"]])
    if (s >= size) return Math.floor(s / size) + unit + " " + String(Math.floor((s % size) / sub)).padStart(2, "0") + name;
}
function when(unix) { return has(unix) ? new Date(1000 * unix).toISOString().slice(0, 19).replace("T", " ") + " UTC" : ""; }

// From steps to the axis that is picked: straight between the points of the run's grid.

function toX(run, steps) {
  if (view.x === "step") return steps;
  const from = run.grid.step, to = run.grid[view.x];
  let i = 0;
  return steps.map((step) => {
    if (!from.length) return step;
    if (step < from[i]) i = 0;
    while (i + 1 < from.length - 1 && from[i + 1] < step) i += 1;
    if (from.length === 1) return to[0];
    const share = Math.min(1, Math.max(0, (step - from[i]) / (from[i + 1] - from[i])));
    return to[i] + share * (to[i + 1] - to[i]);
  });
}

function movingMean(values) {
  const half = Math.max(1, Math.round(values.length / 80));
  const sums = [0];
  for (const value of values) sums.push(sums[sums.length - 1] + value);
  return values.map((_, i) => {
    const reach = Math.min(half, i, values.length - 1 - i); // the same to both sides: the ends are not pulled inwards
    return (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1);
  });
}

// Charts. Each has a spec {id, title, unit, keys(run) or key, ...}, and a body that is redrawn when data or view change.

const sourceOf = (key) => key.slice(5, key.lastIndexOf("/"));
const evalKeys = (metric) => (run) => Object.keys(run.series).filter((key) => key.startsWith("eval/") && key.endsWith("/" + metric) && key.split("/").length > 2);
const one = (...keys) => (run) => keys.filter((key) => key in run.series);
const SPECS = [
  { id: "loss", title: "Training loss", unit: "nats per token", keys: one("train/loss"), smooth: true, tail: true, restarts: true },
  { id: "heldout", title: "Held-out loss by source", unit: "nats per token", keys: evalKeys("loss"), dots: true, tail: true, all: "eval/loss" },
  { id: "bits", title: "Bits per byte by source", unit: "bits", keys: evalKeys("bits_per_byte"), dots: true, tail: true },
  { id: "accuracy", title: "Held-out accuracy", unit: "share of texts", keys: evalKeys("accuracy"), dots: true },
  { id: "train-accuracy", title: "Accuracy of training batches", unit: "share of texts", keys: one("train/accuracy"), smooth: true },
  { id: "lr", title: "Learning rate", unit: "", keys: one("train/learning_rate"), format: "~g" },
  { id: "norm", title: "Gradient norm", unit: "log", keys: one("train/grad_norm"), smooth: true, log: true },
  { id: "speed", title: "Throughput", unit: "tokens/s", keys: one("perf/tokens_per_s"), smooth: true, zero: true, format: "~s" },
  { id: "mfu", title: "MFU", unit: "share of the peak FLOP/s", keys: one("perf/mfu"), smooth: true, zero: true, format: ".1%" },
  { id: "stall", title: "Waiting for data", unit: "share of the time of steps", keys: one("perf/stall_share"), zero: true, format: ".2~%" },
  { id: "step-time", title: "Time of a step", unit: "s", keys: one("perf/step_time_s"), smooth: true, zero: true },
  { id: "epochs", title: "Epochs read, by source", unit: "epochs", keys: (run) => Object.keys(run.series).filter((key) => key.startsWith("data/") && key.endsWith("/epochs")), zero: true },
  { id: "memory", title: "Peak memory", unit: "bytes; process, and device where it counts", keys: one("memory/peak_process_bytes", "memory/peak_device_bytes"), zero: true, format: "~s" },
];

function specs() {
  const known = new Set(data.runs.flatMap((run) => SPECS.flatMap((spec) => spec.keys(run))));
  const skip = /^(eval\/|data\/|perf\/(flops_per_s|compile_s)$)/;
  const others = [...new Set(data.runs.flatMap((run) => Object.keys(run.series)))].filter((key) => !known.has(key) && !skip.test(key));
  return [...SPECS, ...others.map((key) => ({ id: "more-" + key, title: key, unit: "", keys: one(key), smooth: true }))].filter((spec) => data.runs.some((run) => spec.keys(run).length));
}

function nameOf(key, spec) {
  if (key.startsWith("eval/") || key.startsWith("data/")) return sourceOf(key);
  return key.startsWith("memory/") ? (key.includes("device") ? "device" : "process") : spec.title;
}

function lines(spec) {
  // [{name, colour, run, series}]: by source for one run, by run for several (of one picked source).
  if (isOne()) {
    const run = data.runs[0], keys = spec.keys(run);
    return keys.map((key, i) => ({ name: nameOf(key, spec), colour: colour(i), run, series: run.series[key], chip: spec.id + ":" + key }));
  }
  const choices = keysOf(spec), picked = choices.includes(view.picked[spec.id]) ? view.picked[spec.id] : choices[0];
  return data.runs.map((run, i) => ({ name: run.name, colour: colour(i), run, series: run.series[picked], chip: "run:" + i })).filter((line) => line.series);
}

function keysOf(spec) {
  const keys = [...new Set(data.runs.flatMap((run) => spec.keys(run)))];
  return spec.all && data.runs.some((run) => spec.all in run.series) ? [spec.all, ...keys] : keys;
}

function layout(spec, rest) {
  const ink = css("--dim"), line = css("--line");
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, tickfont: { color: ink, size: 11 }, automargin: true, fixedrange: false };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: "system-ui, sans-serif", size: 12, color: css("--ink") },
    margin: { l: 50, r: 12, t: 8, b: 38 }, showlegend: false, hovermode: "x unified", dragmode: "zoom",
    hoverlabel: { bgcolor: css("--card"), bordercolor: line, font: { size: 12, color: css("--ink") }, namelength: 28 },
    xaxis: { ...axis, title: { text: XS[view.x], font: { size: 11.5, color: ink }, standoff: 6 }, tickformat: view.x === "hours" ? "~r" : "~s", nticks: 8, rangemode: "tozero" },
    yaxis: { ...axis, type: spec.log ? "log" : "linear", rangemode: spec.zero ? "tozero" : "normal", tickformat: spec.format || "~r", nticks: 6 },
    yaxis2: { overlaying: "y", range: [0, 1], visible: false, fixedrange: true },
    uirevision: view.x + (spec.picked || ""), ...rest,
  };
}

// A loss falls most in its first steps: what comes after them has the height of the plot, with all its spikes.
function tailRange(spec) {
  let low = Infinity, high = -Infinity, highest = -Infinity;
  for (const { series, chip } of lines(spec)) {
    if (view.hidden.has(chip) || !series.x.length) continue;
    const from = series.x[0] + 0.03 * (series.x[series.x.length - 1] - series.x[0]);
    series.y.forEach((value, i) => {
      highest = Math.max(highest, value);
      if (series.x[i] >= from || series.x.length < 8) { low = Math.min(low, value); high = Math.max(high, value); }
    });
  }
  if (!(high - low > 0) || highest - low < 1.6 * (high - low)) return null;
  return [low - 0.06 * (high - low), high + 0.09 * (high - low)];
}
function decades(spec) {
  const values = lines(spec).flatMap(({ series }) => series.y.filter((value) => value > 0));
  return values.length ? Math.log10(values.reduce((a, b) => Math.max(a, b)) / values.reduce((a, b) => Math.min(a, b))) : 1;
}

function draw(chart) {
  const { spec, plot } = chart, traces = [], shapes = [];
  for (const { name, colour: ink, run, series, chip } of lines(spec)) {
    const shown = !view.hidden.has(chip), label = safe(cut(name, 40));
    const smooth = view.smooth && spec.smooth && series.x.length > 60;
    const value = "%{y:" + (spec.format === ".1%" ? ".2%" : spec.format === "~s" ? ".4s" : ".5~g") + "}<extra>" + label + "</extra>";
    traces.push({
      x: toX(run, series.x), y: series.y, name: label, visible: shown, mode: spec.dots && series.x.length < 30 ? "lines+markers" : "lines", marker: { size: 5 },
      line: { color: ink, width: smooth ? 1 : 1.8 }, opacity: smooth ? 0.32 : 1, hoverinfo: smooth ? "skip" : undefined, hovertemplate: smooth ? undefined : value,
    });
    if (smooth) traces.push({ x: toX(run, series.mx || series.x), y: movingMean(series.my || series.y), name: label, visible: shown, mode: "lines", line: { color: ink, width: 2 }, hovertemplate: value });
    if (series.gone.length) {
      const spans = series.gone.map(([a, b]) => (a === b ? "step " + whole(a) : "steps " + whole(a) + " to " + whole(b)));
      traces.push({ x: toX(run, series.gone.map((span) => span[0])), y: series.gone.map(() => 0.96), yaxis: "y2", mode: "markers", visible: shown, name: "not finite", text: spans, marker: { symbol: "x", size: 9, color: isOne() ? css("--bad") : ink }, hovertemplate: "NaN or infinite: %{text}<extra>" + label + "</extra>" });
    }
    if (spec.restarts && shown && isOne()) {
      const at = run.attempts.map((attempt) => attempt.first_step).filter((step) => step > 0);
      for (const x of toX(run, at.slice(-60))) shapes.push({ type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper", line: { color: css("--warn"), width: 1, dash: "dot" } });
    }
  }
  const made = layout(spec, { shapes }), range = spec.log ? null : spec.tail && tailRange(spec);
  if (range) made.yaxis.range = range;
  if (spec.log) made.yaxis.dtick = decades(spec) < 2.5 ? "D2" : 1;
  chart.drawn = true;
  return Plotly.react(plot, traces, made, { displayModeBar: false, responsive: true, doubleClick: "reset+autosize" });
}

function chartCard(spec) {
  const plot = h("div", { class: "plot", role: "img", "aria-label": spec.title });
  const head = h("div", { class: "plot-head" }, h("h3", {}, spec.title), spec.unit && h("span", { class: "dim" }, spec.unit));
  const chart = { spec, plot, drawn: false };
  if (isOne() && lines(spec).length > 1) head.append(h("div", { class: "chips" }, lines(spec).map((line) => chip(line.name, line.colour, line.chip))));
  if (!isOne() && keysOf(spec).length > 1) {
    const select = h("select", { "aria-label": "source", onchange: (event) => { view.picked[spec.id] = event.target.value; draw(chart); } }, keysOf(spec).map((key) => h("option", { value: key, selected: view.picked[spec.id] === key }, key === spec.all ? "all sources" : nameOf(key, spec))));
    head.append(select);
  }
  charts.push(chart);
  return h("div", { class: "card" }, head, plot);
}

function chip(name, ink, id) {
  const toggle = (event) => {
    view.hidden.has(id) ? view.hidden.delete(id) : view.hidden.add(id);
    event.currentTarget.setAttribute("aria-pressed", String(!view.hidden.has(id)));
    redraw();
  };
  return h("button", { class: "chip", "aria-pressed": String(!view.hidden.has(id)), title: "show or hide", onclick: toggle }, h("span", { class: "dot", style: { background: ink } }), name);
}

// Charts in sight are drawn at once, the others when the browser has time, or when they come into sight.

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const chart = charts.find((one) => one.plot === entry.target);
    if (chart && entry.isIntersecting && !chart.drawn) drawNow(chart);
  }
}, { rootMargin: "100px" });
function drawNow(chart) { (chart.own || (() => draw(chart)))(); chart.drawn = true; seen.unobserve(chart.plot); }
function watch() { for (const chart of charts) seen.observe(chart.plot); requestIdleCallback ? requestIdleCallback(drawRest, { timeout: 400 }) : setTimeout(drawRest, 100); }
function drawRest() {
  const next = charts.find((chart) => !chart.drawn);
  if (!next) { document.documentElement.dataset.drawn = "all"; return; }
  drawNow(next);
  setTimeout(drawRest, 0);
}
function redraw() { for (const chart of charts) if (chart.drawn) (chart.own || (() => draw(chart)))(); }

// Start.

function table(head, rows, attributes = {}) {
  const text = attributes.text || [];
  const cell = (tag, value, i) => (value instanceof Node && (value.tagName === "TD" || value.tagName === "TH") ? value : h(tag, { class: text.includes(i) ? "text" : i === 0 ? "name" : null }, value));
  return h("div", { class: "scroll" }, h("table", { class: attributes.class || "" }, head && h("thead", {}, h("tr", {}, head.map((value, i) => cell("th", value, i)))), h("tbody", {}, rows.map((row) => (row instanceof Node ? row : h("tr", {}, row.map((value, i) => cell("td", value, i))))))));
}
function section(title, ...body) { const parts = body.flat(9).filter((part) => part); return parts.length ? h("section", {}, h("h2", {}, title), parts) : null; }
