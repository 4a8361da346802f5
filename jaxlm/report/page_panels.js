// The panels of the page besides its curves, and how it comes to life. Runs after page.js.

function card(label, value, more, extra) { return h("div", { class: "card" }, h("div", { class: "label" }, label), h("div", { class: "value num" }, value), extra, more && h("div", { class: "more" }, more)); }
function meter(share) { return has(share) ? h("div", { class: "meter" }, h("i", { style: { width: Math.min(100, 100 * share).toFixed(1) + "%" } })) : null; }
function small(text) { return h("small", {}, " " + text); }

function firstScreen() {
  if (!isOne()) return severalRuns();
  const run = data.runs[0], s = run.summary;
  const bits = Object.entries(run.eval).filter(([, row]) => has(row.bits_per_byte));
  const accuracy = Object.entries(run.eval).filter(([, row]) => has(row.accuracy));
  const tokensPlanned = run.sources.reduce((sum, one) => sum + (one.planned_tokens || 0), 0) || null;
  return h("div", { class: "cards" },
    card("step", whole(s.step), [has(s.num_steps) ? "of " + whole(s.num_steps) : "", run.state === "running" && has(s.left_s) ? "about " + duration(s.left_s) + " left" : has(s.step_time_s) ? duration(s.step_time_s) + " each" : ""].filter(Boolean).join("; "), has(s.num_steps) && has(s.step) && meter(s.step / s.num_steps)),
    card("training loss", s.loss_is_finite ? digits(s.loss) : "NaN", has(s.loss) ? (s.loss_is_finite ? "at the last step" : "last finite: " + digits(s.loss)) : null),
    card("held-out loss", digits(s.held_out), has(s.best_held_out) ? "best " + digits(s.best_held_out) + " at step " + whole(s.best_step) : "not evaluated yet"),
    bits.length ? card("bits per byte", span(bits.map(([, row]) => row.bits_per_byte), 2), bits.length > 1 ? "lowest and highest of " + bits.length + " sources" : bits[0][0]) : null,
    accuracy.length ? card("accuracy", span(accuracy.map(([, row]) => row.accuracy), 3), accuracy.map(([name]) => name).join(", ")) : null,
    card("tokens", compact(s.tokens), has(tokensPlanned) ? "of " + compact(tokensPlanned) + " planned" : "trained on", has(tokensPlanned) && meter(s.tokens / tokensPlanned)),
    card("time", duration(s.wall_s), s.num_starts > 1 ? s.num_starts + " starts" : "one start"),
    card("goodput", percent(s.goodput), "of it in steps that counted", meter(s.goodput)),
    card("throughput", [compact(s.tokens_per_s), small("tokens/s")], has(s.mfu) ? "MFU " + percent(s.mfu) : has(s.flops_per_s) ? compact(s.flops_per_s, "FLOP/s") : null),
  );
}
function span(values, num) { const low = Math.min(...values), high = Math.max(...values); return digits(low, num) === digits(high, num) ? digits(low, num) : digits(low, num) + " \u2013 " + digits(high, num); }

function severalRuns() {
  const best = Math.min(...data.runs.map((run) => run.summary.best_held_out ?? Infinity));
  const rows = data.runs.map((run, i) => {
    const s = run.summary, isBest = s.best_held_out === best && data.runs.length > 1;
    return [h("td", { class: "name" }, dot(i), run.name), h("td", {}, h("span", { class: "badge " + run.state, title: run.about }, run.state)), whole(s.step) + (has(s.num_steps) ? " / " + whole(s.num_steps) : ""), s.loss_is_finite ? digits(s.loss) : "NaN", digits(s.held_out), h("td", {}, isBest ? h("b", {}, digits(s.best_held_out)) : digits(s.best_held_out)), compact(s.tokens), duration(s.wall_s), percent(s.goodput), compact(s.tokens_per_s), percent(s.mfu), whole(s.num_starts), whole(s.num_bad)];
  });
  return h("div", { class: "card", style: { marginTop: "12px" } }, table(["run", "state", "step", "training loss", "held-out", "best", "tokens", "time", "goodput", "tokens/s", "MFU", "starts", "bad steps"], rows, { class: "full" }));
}

function alerts() {
  return data.runs.flatMap((run) => {
    const of = isOne() ? "" : run.name + ": ", found = [];
    if (run.state === "failed") found.push(h("div", { class: "alert bad" }, of + "failed: " + cut(run.about, 600)));
    if (run.state === "interrupted" && isOne()) found.push(h("div", { class: "alert" }, of + run.about + "."));
    if (run.num_bad_lines) found.push(h("div", { class: "alert" }, of + whole(run.num_bad_lines) + " line(s) of the log could not be read and are left out. " + run.bad_lines[0]));
    if (run.summary.num_bad && isOne()) found.push(h("div", { class: "alert" }, of + whole(run.summary.num_bad) + " bad step(s) were skipped: see the time line."));
    return found;
  });
}

// Where the time went.

const PART_COLOURS = { productive: "#2a9d74", compile: "#8465d6", checkpoint: "#3572d6", restore: "#7fb2ef", data_stall: "#e0752d", evaluation: "#2f9fb5", startup: "#c59b16", lost_steps: "#d1495b", down: "#8a2f3c", other: "#9aa1ab" };
function goodputPanel() {
  const parts = Object.keys(data.parts), accounts = data.runs.map((run) => [run.name, run.goodput]);
  if (data.total) accounts.push(["all runs together", data.total]);
  if (!accounts.some(([, one]) => one.wall_s > 0)) return null;
  const bars = accounts.map(([name, one]) => h("div", { class: "stack-row" }, h("div", {}, isOne() ? "share of " + duration(one.wall_s) : name), h("div", { class: "stack" }, parts.map((part) => one.shares[part] > 0 && h("i", { style: { width: 100 * one.shares[part] + "%", background: PART_COLOURS[part] }, title: data.parts[part] + ": " + percent(one.shares[part]) + ", " + duration(one.seconds[part]) }))), h("div", {}, percent(one.goodput))));
  const shown = parts.filter((part) => accounts.some(([, one]) => one.seconds[part] === null || one.seconds[part] > 0));
  const rows = shown.map((part) => [h("td", { class: "name" }, h("span", { class: "dot", style: { background: PART_COLOURS[part] } }), data.parts[part]), ...accounts.flatMap(([, one]) => (one.seconds[part] === null ? ["not recorded", "-"] : [duration(one.seconds[part]), percent(one.shares[part])]))]);
  const head = ["part of the wall time", ...accounts.flatMap(([name]) => (isOne() ? ["time", "share"] : [cut(name, 24), "share"]))];
  const lost = accounts.reduce((sum, [, one]) => sum + one.num_lost_steps, 0);
  const notes = [
    "Goodput is the share of the wall time that went into steps that counted in the end. The parts add up to the wall time: from the first call of train to the last event of the last process.",
    lost > 0 && whole(lost) + " step(s) were done again after a restart.",
    accounts.some(([, one]) => one.seconds.startup === null) && "Not recorded: by a version of jaxlm whose log does not have it. Compiling and saving are then within the steps, the rest is not measured.",
  ];
  const said = notes.filter((note) => note).map((note) => h("p", { class: "note" }, note));
  return h("div", { class: "card" }, bars, h("div", { class: isOne() ? "two" : "", style: { marginTop: "8px" } }, table(head, rows), h("div", {}, said)));
}

// The time line: a lane for each kind of event, hours since the start of the run.

const LANES = [["start", "starts", "triangle-right"], ["save", "checkpoints", "line-ns-open"], ["warning", "warnings", "diamond"], ["bad_step", "bad steps", "x"], ["rollback", "rollbacks", "triangle-left"], ["failed", "stopped, failed", "square"], ["end", "finished", "star"]];
function drawTimeline(chart) {
  const lanes = LANES.filter(([kind]) => data.runs.some((run) => run.marks[kind]));
  const names = ["at work", ...lanes.map(([, name]) => name)].reverse(), traces = [];
  const longest = Math.max(...data.runs.flatMap((run) => run.attempts.map((one) => one.to || 0)), 0);
  const [unit, size] = longest < 0.05 ? ["seconds", 3600] : longest < 1.5 ? ["minutes", 60] : longest < 72 ? ["hours", 1] : ["days", 1 / 24];
  data.runs.forEach((run, i) => {
    if (view.hidden.has("run:" + i)) return;
    const ink = isOne() ? css("--accent") : colour(i), shift = isOne() ? 0 : (0.5 - (i + 0.5) / data.runs.length) * 0.62;
    const x = [], y = [], text = [];
    for (const one of run.attempts) {
      const said = "steps " + whole(one.first_step ?? 0) + " to " + whole(one.last_step);
      x.push(one.from * size, one.to * size, null); y.push(names.indexOf("at work") + shift, names.indexOf("at work") + shift, null); text.push(said, said, "");
    }
    traces.push({ x, y, text, mode: "lines", line: { color: ink, width: isOne() ? 9 : Math.max(2, 9 / data.runs.length) }, hovertemplate: "%{text}<extra>" + safe(cut(run.name, 40)) + "</extra>" });
    for (const [kind, name, symbol] of lanes) {
      const rows = (run.marks[kind] || { rows: [] }).rows;
      const tint = kind === "bad_step" || kind === "failed" ? css("--bad") : kind === "warning" || kind === "rollback" ? css("--warn") : kind === "end" ? css("--good") : ink;
      if (rows.length) traces.push({ x: rows.map((row) => row[0] * size), y: rows.map(() => names.indexOf(name) + shift), text: rows.map((row) => safe([when(row[1]), has(row[2]) ? "step " + whole(row[2]) : "", cut(row[3], 160).replace(/(.{60,80}) /g, "$1\n")].filter(Boolean).join("\n")).replace(/\n/g, "<br>")), mode: "markers", marker: { symbol, size: kind === "save" ? 11 : 9, color: isOne() ? tint : ink, line: { width: kind === "save" ? 2 : 0, color: isOne() ? tint : ink } }, hovertemplate: "%{text}<extra>" + safe(cut(run.name, 40)) + "</extra>" });
    }
  });
  const made = layout({}, {});
  made.hovermode = "closest"; made.dragmode = "zoom"; made.margin.l = 104;
  made.xaxis.range = [-0.012 * longest * size, 1.03 * longest * size || 1];
  made.xaxis.title.text = unit + " since the start of the run"; made.xaxis.tickformat = "~r";
  made.yaxis = { ...made.yaxis, type: "linear", tickmode: "array", tickvals: names.map((_, i) => i), ticktext: names, range: [-0.6, names.length - 0.4], tickformat: undefined, fixedrange: true, rangemode: undefined, zeroline: false };
  made.height = 62 + 27 * names.length + (isOne() ? 0 : 8 * data.runs.length);
  return Plotly.react(chart.plot, traces, made, { displayModeBar: false, responsive: true, doubleClick: "reset" });
}
function timelinePanel() {
  if (!data.runs.some((run) => run.attempts.length || Object.keys(run.marks).length)) return null;
  const plot = h("div", { class: "plot", style: { height: "auto" }, role: "img", "aria-label": "time line" }), chart = { plot, drawn: false };
  chart.own = () => drawTimeline(chart);
  charts.push(chart);
  const words = data.runs.flatMap((run, i) => ["warning", "bad_step", "rollback", "failed"].flatMap((kind) => ((run.marks[kind] || {}).rows || []).map((row) => [row[1], when(row[1]), isOne() ? "" : run.name, kind.replace("_", " "), has(row[2]) ? whole(row[2]) : "", row[3]]))).sort((a, b) => a[0] - b[0]);
  const rows = words.slice(-200).map(([, time, run, kind, step, said]) => (isOne() ? [time, kind, step, said] : [time, run, kind, step, said]));
  const left = data.runs.flatMap((run) => Object.values(run.marks)).reduce((sum, one) => sum + one.n - one.rows.length, 0);
  return h("div", { class: "card" }, plot, left > 0 && h("p", { class: "note" }, whole(left) + " marks are not drawn: of each kind there are at most 1,000, evenly spread."), rows.length > 0 && h("details", { open: rows.length <= 6 || null }, h("summary", {}, rows.length === words.length ? whole(rows.length) + " warnings, bad steps and interruptions, in words" : "the last 200 of " + whole(words.length)), table(isOne() ? ["time", "event", "step", "what it says"] : ["time", "run", "event", "step", "what it says"], rows, { text: isOne() ? [1, 3] : [1, 2, 4] })));
}

// Tables.

function sourcesPanel() {
  return data.runs.filter((run) => run.sources.length).map((run) => {
    const most = Math.max(...run.sources.map((one) => one.tokens || 0), 1);
    const rows = run.sources.map((one, i) => [h("td", { class: "name" }, isOne() && dot(i), one.name), compact(one.planned_tokens), compact(one.planned_tokens_now), compact(one.tokens), has(one.tokens) && one.planned_tokens_now ? percent(one.tokens / one.planned_tokens_now, 1) : "-", h("td", { class: "share" }, meter((one.tokens || 0) / most)), digits(one.planned_epochs, 3), digits(one.planned_epochs_now, 3), digits(one.epochs, 3)]);
    return h("div", { class: "card wide" }, !isOne() && h("h3", {}, run.name), table(["source", "tokens planned", "by now", "read", "of that", "", "epochs planned", "by now", "read"], rows, { class: "full" }));
  });
}
function evalPanel() {
  const runs = data.runs.filter((run) => Object.keys(run.eval).length);
  return runs.map((run) => {
    const columns = [["loss", "loss", 4], ["perplexity", "perplexity", 2], ["bits_per_byte", "bits per byte", 4], ["accuracy", "accuracy", 4], ["best", "lowest loss", 4]].filter(([key]) => Object.values(run.eval).some((row) => has(row[key])));
    const rows = Object.entries(run.eval).map(([name, row], i) => [h("td", { class: "name" }, isOne() && dot(i), name), ...columns.map(([key, , num]) => digits(row[key], num)), whole(row.best_step)]);
    return h("div", { class: "card" }, !isOne() && h("h3", {}, run.name), table(["held out, at step " + whole(run.summary.held_out_step), ...columns.map(([, title]) => title), "at step"], rows, { class: "full" }));
  });
}
function memoryPanel() {
  const rows = data.runs.filter((run) => has(run.memory.peak_process_bytes) || has(run.memory.planned_device_bytes)).map((run, i) => [h("td", { class: "name" }, !isOne() && dot(data.runs.indexOf(run)), isOne() ? "this run" : run.name), bytes(run.memory.planned_device_bytes), has(run.memory.peak_device_bytes) ? bytes(run.memory.peak_device_bytes) : "not counted", bytes(run.memory.peak_process_bytes)]);
  return rows.length ? h("div", { class: "card" }, table(["memory", "planned for a device", "peak of a device", "peak of the process"], rows, { class: "full" }), h("p", { class: "note" }, "CPUs count nothing for their devices, which are the process.")) : null;
}
function samplesPanel() {
  const names = [...new Set(data.runs.flatMap((run) => run.texts.map((one) => one.name)))];
  return names.map((name) => {
    const rows = data.runs.flatMap((run, i) => ((run.texts.find((one) => one.name === name) || {}).rows || []).map(([step, text]) => [step, i, text])).sort((a, b) => b[0] - a[0] || a[1] - b[1]);
    const list = rows.map(([step, i, text]) => h("div", { class: isOne() ? "sample" : "sample of-several" }, h("div", { class: "dim small num" }, "step " + whole(step), !isOne() && h("div", {}, dot(i), " " + data.runs[i].name)), h("pre", { dir: "auto" }, text)));
    const total = data.runs.reduce((sum, run) => sum + ((run.texts.find((one) => one.name === name) || {}).n || 0), 0);
    const few = isOne() ? 3 : 2 * data.runs.length;
    return h("div", { class: "card" }, h("h3", {}, name.replace(/^sample: /, "")), h("div", { class: "note", style: { marginTop: 0 } }, "the latest first" + (total > rows.length ? "; " + whole(rows.length) + " of " + whole(total) + ", evenly spread" : "")), list.slice(0, few), list.length > few && h("details", {}, h("summary", {}, whole(list.length - few) + " earlier"), list.slice(few)));
  });
}

function scoresPanel() {
  return data.runs.flatMap((run, i) => run.scores.map((one) => h("div", { class: "card", style: { marginBottom: "12px" } }, h("h3", {}, !isOne() && [dot(i), " ", run.name, ": "], String(one.data ?? one.file)), h("div", { class: "note", style: { margin: "0 0 6px" } }, [has(one.step) ? "step " + whole(one.step) : "", String(one.file || "")].filter(Boolean).join(", ")), "exact_match" in one ? answers(one) : labels(one))));
}
const SCORES = [["num_texts", "texts", whole], ["num_records", "records", whole], ["accuracy", "accuracy"], ["macro.f1", "macro F1"], ["micro.f1", "micro F1"], ["loss", "loss (nats)"], ["ece", "calibration error"], ["temperature", "temperature"], ["ece_at_temperature", "calibration error at it"], ["roc_auc", "ROC-AUC"], ["label_accuracy", "labels right"], ["mse", "MSE"], ["mae", "MAE"], ["r2", "R2"], ["pearson", "Pearson"], ["spearman", "Spearman"], ["exact_match", "exact match"], ["token_f1", "token F1"], ["rouge_l", "ROUGE-L"], ["chrf", "chrF", (value) => digits(value, 2)], ["bleu", "BLEU", (value) => digits(value, 2)], ["answer_loss", "loss of wanted answers"], ["answer_perplexity", "their perplexity"], ["mean_tokens", "tokens of an answer", (value) => digits(value, 1)], ["mean_reference_tokens", "of those wanted", (value) => digits(value, 1)], ["stop_rate", "stopped by itself", (value) => percent(value)], ["baselines.majority.accuracy", "accuracy of the commonest label"], ["consistency.agreement", "same answer to rewordings", (value) => percent(value)]];
function figures(one) { return table(null, SCORES.filter(([key]) => typeof one[key] === "number").map(([key, name, show]) => [h("td", { class: "name" }, name), (show || digits)(one[key])])); }
function answers(one) {
  return h("div", { class: "two" }, figures(one), one.rules && one.rules.length ? table(["rule", "kept", "of", "share"], one.rules.map((rule) => [String(rule.name), whole(rule.num_passed), whole(rule.num_records), percent(rule.pass_rate)])) : null);
}
function labels(one) {
  const names = Array.isArray(one.labels) ? one.labels.map(String) : [];
  const classes = Array.isArray(one.classes) && table(["label", "precision", "recall", "F1", "texts", "predicted"], one.classes.map((row) => [String(row.label), digits(row.precision, 3), digits(row.recall, 3), digits(row.f1, 3), whole(row.support), whole(row.num_predicted)]));
  const matrix = Array.isArray(one.confusion) && h("div", {}, h("h4", {}, "Confusion matrix: rows are true, columns predicted"), confusion(names, one.confusion));
  const curve = Array.isArray(one.calibration_bins) && one.calibration_bins.length > 0 && h("div", {}, h("h4", {}, "Calibration: share that is right, by the probability of the predicted label"), reliability(one.calibration_bins));
  return [h("div", { class: "two" }, figures(one), classes), h("div", { class: "two" }, matrix, curve)];
}
function confusion(names, counts) {
  const rows = counts.map((row, i) => {
    const sum = row.reduce((a, b) => a + b, 0);
    return h("tr", {}, h("th", { style: { textAlign: "right" } }, names[i]), row.map((count, j) => {
      const share = sum ? count / sum : 0, ink = i === j ? "42,157,116" : "209,73,91";
      return h("td", { style: { background: "rgba(" + ink + "," + (0.75 * share).toFixed(3) + ")" }, title: percent(share) + " of " + names[i] + " were called " + names[j] }, whole(count));
    }));
  });
  return h("div", { class: "scroll" }, h("table", { class: "confusion" }, h("thead", {}, h("tr", {}, h("th", {}, ""), names.map((name) => h("th", {}, name)))), h("tbody", {}, rows)));
}
function reliability(bins) {
  const plot = h("div", { class: "plot" }), chart = { plot, drawn: false }, most = Math.max(...bins.map((bin) => bin.num_texts), 1);
  chart.own = () => {
    const made = layout({ format: ".0%" }, {});
    made.hovermode = "closest";
    made.xaxis = { ...made.xaxis, range: [0, 1.03], tickformat: ".0%", rangemode: "normal", title: { ...made.xaxis.title, text: "probability of the predicted label" } };
    made.yaxis.range = [0, 1.05];
    return Plotly.react(plot, [
      { x: [0, 1], y: [0, 1], mode: "lines", line: { color: css("--dim"), width: 1, dash: "dash" }, hoverinfo: "skip" },
      { x: bins.map((bin) => bin.confidence), y: bins.map((bin) => bin.accuracy), text: bins.map((bin) => whole(bin.num_texts)), mode: "lines+markers", line: { color: colour(0), width: 1.5 }, marker: { color: colour(0), size: bins.map((bin) => 6 + 16 * Math.sqrt(bin.num_texts / most)) }, hovertemplate: "%{text} texts: %{y:.1%} right at %{x:.1%}<extra></extra>" },
    ], made, { displayModeBar: false, responsive: true });
  };
  charts.push(chart);
  return plot;
}

function configPanel() {
  const runs = data.runs.filter((run) => Object.keys(run.config).length);
  if (!runs.length) return null;
  const keys = [...new Set(runs.flatMap((run) => Object.keys(run.config)))];
  const differs = (key) => new Set(runs.map((run) => run.config[key] ?? "(no such key)")).size > 1;
  const changed = (key) => (!(key in data.defaults) && runs.some((run) => run.config[key] !== "-")) || runs.some((run) => key in data.defaults && run.config[key] !== data.defaults[key]);
  const first = runs.length > 1 ? differs : changed;
  const choose = h("select", { "aria-label": "which keys" }, h("option", { value: "some" }, runs.length > 1 ? "what differs" : "what is not the default"), h("option", { value: "all" }, "all " + keys.length + " keys"));
  const search = h("input", { type: "search", placeholder: "filter keys", "aria-label": "filter keys" });
  const place = h("div", {});
  const show = () => {
    const found = keys.filter((key) => (choose.value === "all" || first(key)) && key.includes(search.value.trim()));
    const rows = found.map((key) => h("tr", { class: choose.value === "all" && !first(key) ? "same" : null }, h("td", { class: "name" }, key), runs.map((run) => h("td", { class: "text" }, cut(run.config[key] ?? "(no such key)", 400))), runs.length === 1 && h("td", { class: "text dim" }, data.defaults[key] ?? "")));
    place.replaceChildren(found.length ? table(["key", ...runs.map((run) => h("th", { class: "text" }, !isOne() && dot(data.runs.indexOf(run)), isOne() ? "value" : run.name)), ...(runs.length === 1 ? [h("th", { class: "text" }, "default")] : [])], rows, { class: "full" }) : h("p", { class: "note" }, runs.length > 1 && choose.value === "some" ? "The configs of these runs are equal." : "No such key."));
  };
  choose.addEventListener("change", show); search.addEventListener("input", show); show();
  return h("div", { class: "card" }, h("div", { class: "plot-head" }, choose, search), place);
}
function factsPanel() {
  return data.runs.filter((run) => Object.keys(run.facts).length).map((run) => h("div", { class: "card" }, !isOne() && h("h3", {}, run.name), table(null, Object.entries(run.facts).map(([key, value]) => [key, value]), { text: [1] })));
}

// The whole.

function build() {
  for (const chart of charts) if (chart.drawn) Plotly.purge(chart.plot);
  charts = [];
  const title = isOne() ? data.runs[0].name : data.runs.length + " runs";
  document.title = title + " - jaxlm";
  const made = specs(), curves = made.map(chartCard);
  const decimated = data.runs.some((run) => Object.values(run.series).some((series) => series.mx));
  document.getElementById("runs").replaceChildren(...(isOne() ? [] : data.runs.map((run, i) => chip(run.name, colour(i), "run:" + i))));
  document.getElementById("head").replaceChildren(h("h1", {}, title), ...(isOne() ? [h("span", { class: "badge " + data.runs[0].state, title: data.runs[0].about }, data.runs[0].state)] : []), h("span", { class: "dim small" }, isOne() ? (data.runs[0].facts.model || "") + (data.runs[0].facts.mesh ? "; " + data.runs[0].facts.mesh : "") : ""));
  const parts = [
    ...alerts(), firstScreen(),
    section("Curves", curves.length ? h("div", { class: "grid" }, curves) : h("p", { class: "note" }, "No step has been logged yet."), h("p", { class: "note" }, (decimated ? "A thin line goes through the first, last, lowest and highest value of each of 500 stretches of steps, so that no spike is missing; a thick line is a moving mean of the means of these stretches. " : "Thin lines: every value of the log. Thick lines: a moving mean. ") + "A \u00d7 is a value that is not finite: every one is marked. " + (isOne() && data.runs[0].attempts.length > 1 ? "Dotted: a restart. " : "") + "Drag to zoom, double-click to zoom out (of losses: twice, to see the first steps, too).")),
    section("Held-out scores", h("div", { class: data.runs.length > 1 ? "grid" : "" }, evalPanel())),
    section("Where the time went", goodputPanel()),
    section("Time line", timelinePanel()),
    section("Tokens and epochs, planned and read", h("div", { class: "grid" }, sourcesPanel())),
    section("Memory", memoryPanel()),
    section("Samples over time", h("div", { class: "samples" }, samplesPanel())),
    section("Evaluations", scoresPanel()),
    section(isOne() ? "Config" : "Config, and what differs", configPanel()),
    section("Decided at the start", h("div", { class: "grid" }, factsPanel())),
  ].filter((part) => part && !(part.tagName === "SECTION" && !part.querySelector(".card, .plot, .note")));
  document.getElementById("main").replaceChildren(...parts);
  document.getElementById("made").textContent = (data.live ? "Last change " : "Made ") + when(data.made_s);
  watch();
}

function setTheme(theme) {
  view.theme = theme;
  document.documentElement.dataset.theme = theme;
  document.getElementById("theme").textContent = theme === "dark" ? "light" : "dark";
  redraw();
}
function press(group, value) { for (const button of document.querySelectorAll("[data-" + group + "]")) button.setAttribute("aria-pressed", String(button.dataset[group] === value)); }
for (const button of document.querySelectorAll("[data-x]")) button.addEventListener("click", () => { view.x = button.dataset.x; press("x", view.x); redraw(); });
document.getElementById("smooth").addEventListener("click", (event) => { view.smooth = !view.smooth; event.currentTarget.setAttribute("aria-pressed", String(view.smooth)); redraw(); });
document.getElementById("theme").addEventListener("click", () => setTheme(view.theme === "dark" ? "light" : "dark"));
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
prefersDark.addEventListener("change", (event) => setTheme(event.matches ? "dark" : "light"));
setTheme(prefersDark.matches ? "dark" : "light");
build();

// Live: asks for what is new; the page is made again where it stands.

async function follow() {
  const live = document.getElementById("live");
  for (let version = data.version; ; ) {
    await new Promise((resolve) => setTimeout(resolve, 1000 * data.poll_s));
    if (document.hidden) continue;
    try {
      const answer = await fetch("data.json?after=" + version, { cache: "no-store" });
      if (answer.status === 200) {
        data = await answer.json();
        version = data.version;
        const top = scrollY, open = [...document.querySelectorAll("details")].map((one) => one.open);
        build();
        document.querySelectorAll("details").forEach((one, i) => { if (i < open.length) one.open = open[i]; });
        scrollTo(0, top);
      } else if (answer.status !== 204) throw new Error(await answer.text());
      live.textContent = "live";
      live.className = "badge running";
    } catch (error) {
      live.textContent = error instanceof TypeError ? "the server has ended" : cut(String(error.message), 200);
      live.className = "badge interrupted";
    }
  }
}
if (data.live) { document.getElementById("live").hidden = false; follow(); }
