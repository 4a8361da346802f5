// What all panels share. Nothing here makes markup of text: whatever a model, a label or a prompt holds is a text node.

export const state = { models: [], limits: {}, defaults: {}, model: 0 };

/** An element. Properties are set, `class`, `role` and `aria-*` as attributes; children are elements or texts. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (/^(class|role|for|aria-|data-)/.test(name)) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children);
  return node;
}

export const percent = (p) => (p === 0 ? "0 %" : p < 0.0001 ? p.toExponential(1) : `${(100 * p).toFixed(2)} %`);

/** A token as it can be seen: blanks and control characters get a sign. */
export function visible(piece) {
  const signs = { " ": "\u00b7", "\n": "\u23ce", "\t": "\u21e5", "\r": "\u240d", "": "\u2205" };
  if (piece === "") return signs[""];
  return piece.replace(/[ \n\t\r]|\p{Cc}|\p{Cf}/gu, (c) => signs[c] ?? `\\u{${c.codePointAt(0).toString(16)}}`);
}

/** A mistake, in one line. */
export class Mistake extends Error {}

/** Asks the server; `onEvent` gets each event as it comes. Throws Mistake, or AbortError when `signal` stops it. */
export async function ask(name, body, onEvent, signal) {
  const content = JSON.stringify(body);
  const size = new Blob([content]).size;
  if (size > state.limits.body_bytes) {
    throw new Mistake(`The text has ${(size / 1e6).toFixed(1)} MB; the playground takes ${Math.round(state.limits.body_bytes / 1e3)} kB at a time: shorten it.`);
  }
  let response;
  try {
    response = await fetch(`/api/${name}`, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: content, signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Mistake("The playground does not answer: was it ended in its terminal?");
  }
  let ended = false;
  const take = (line) => {
    if (!line) return;
    const event = JSON.parse(line);
    if (event.event === "error") throw new Mistake(event.message);
    ended ||= event.event === "end";
    onEvent(event);
  };
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      lines.forEach(take);
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Mistake) throw error;
    throw new Mistake("The playground does not answer: was it ended in its terminal?");
  }
  take(rest);
  if (!ended) throw new Mistake("The answer was cut off: was the playground ended in its terminal?");
}

const optional = (id) => {
  const value = document.getElementById(id).value.trim();
  return value === "" ? null : Number(value);
};

/** The settings of the sidebar, as the server wants them. */
export function sampling() {
  return {
    temperature: optional("temperature") ?? 1, top_k: optional("top_k"), top_p: optional("top_p"),
    min_p: optional("min_p"), seed: optional("seed") ?? 0,
  };
}

/** What a panel says below its buttons: a status that is read out, or a mistake. */
export function speaker() {
  const status = el("p", { class: "status", role: "status" });
  const error = el("p", { class: "error", role: "alert", hidden: true });
  return {
    nodes: [status, error],
    say(text) { status.textContent = text; },
    fail(text) { error.textContent = text; error.hidden = !text; },
  };
}

/**
 * One question at a time for a panel: a new one ends the one before. `work(signal, onWaiting)`; resolves to whether it
 * came to its end.
 */
export function asker(voice, onBusy = () => {}) {
  let running = null;
  return {
    get busy() { return running !== null; },
    stop() { running?.abort(); },
    async run(work) {
      running?.abort();
      const mine = (running = new AbortController());
      voice.fail("");
      onBusy(true);
      const waiting = (event) => {
        if (event.event === "waiting") voice.say(`Waiting for ${event.before} other request${event.before > 1 ? "s" : ""} ...`);
      };
      try {
        await work(mine.signal, waiting);
        return true;
      } catch (error) {
        if (error.name === "AbortError") { if (running === mine) voice.say("Stopped."); }
        else {
          if (running === mine) voice.say("");
          voice.fail(error instanceof Mistake ? error.message : "The page made a mistake: reload it.");
          if (!(error instanceof Mistake)) console.error(error);
        }
        return false;
      } finally {
        if (running === mine) { running = null; onBusy(false); }
      }
    },
  };
}

let labels = 0;
/** A label above an input. */
export function field(label, input, hint = "", kind = "") {
  input.id ||= `field-${labels++}`;
  return el("div", { class: kind }, el("label", { for: input.id }, `${label} `, el("span", { class: "hint" }, hint)), input);
}

/** A bar of one or two probabilities; `most` fills the track. */
export function track(p, after, most) {
  const bar = el("span", {}), top = el("span", { class: "after" });
  bar.style.width = `${Math.min(100, (100 * p) / most)}%`;
  if (after === null) bar.style.background = "var(--accent)";
  else top.style.width = `${Math.min(100, (100 * after) / most)}%`;
  return el("div", { class: "track", "aria-hidden": "true" }, bar, ...(after === null ? [] : [top]));
}

export const legend = () => el("p", { class: "legend" },
  el("span", {}, el("i"), "by the model"), el("span", {}, el("i", { class: "after" }), "after temperature and filters"));

/** Rows of the most probable tokens; onPick(token) makes each a button. */
export function tokenRows(found, onPick = null) {
  const rows = [...found.top];
  for (const extra of [found.greedy, found.sampled]) {
    if (!rows.some((row) => row.id === extra.id)) rows.push(extra);
  }
  const most = Math.max(...rows.map((row) => Math.max(row.p, row.p_sampled)), 1e-9);
  return el("ol", { class: "bars" }, ...rows.map((row) => {
    const tags = [];
    if (row.id === found.greedy.id) tags.push(el("span", { class: "tag greedy" }, "greedy"));
    if (row.id === found.sampled.id) tags.push(el("span", { class: "tag" }, "sampled"));
    const cells = [
      el("span", { class: "num" }, String(row.rank)),
      el("span", { class: "piece", title: `id ${row.id}` }, el("bdi", {}, visible(row.piece)), ...tags),
      track(row.p, row.p_sampled, most),
      el("span", { class: "num" }, percent(row.p)),
      el("span", { class: "num strong" }, percent(row.p_sampled)),
    ];
    const kind = "bar" + (row.p_sampled === 0 ? " out" : "") + (row.rank > found.top.length ? " below" : "");
    if (onPick === null) return el("li", { class: kind }, ...cells);
    return el("li", {}, el("button", {
      type: "button", class: kind, "data-id": row.id, onclick: () => onPick(row),
      "aria-label": `Pick ${visible(row.piece)}, probability ${percent(row.p)}, sampled ${percent(row.p_sampled)}`,
    }, ...cells));
  }));
}

/** Probabilities of candidate words. */
export function wordRows(words) {
  return el("ol", { class: "bars words" }, ...words.map((word) => el("li", { class: "bar" },
    el("span", { class: "piece" }, el("bdi", {}, word.word)),
    track(word.share, null, 1),
    el("span", { class: "num strong" }, percent(word.share)),
    el("span", { class: "num" }, `p ${word.p_word.toExponential(2)}`),
    el("span", { class: "factors" },
      [...word.pieces.map((piece, i) => `${visible(piece)} ${percent(word.token_ps[i])}`), `ends ${percent(word.p_end)}`].join("  ×  ")
      + (word.merged ? "  (merged with the last token before it)" : "")))));
}

/** Labels of a text, most probable first. */
export function labelRows(line) {
  const labels = Object.entries(line.probabilities ?? {}).sort((a, b) => b[1] - a[1]);
  return el("ol", { class: "bars labels" }, ...labels.map(([label, p], i) => el("li", { class: i ? "bar" : "bar first" },
    el("span", { class: "piece", title: label }, el("bdi", {}, label)), track(p, null, 1),
    el("span", { class: i ? "num" : "num strong" }, percent(p)))));
}

/** What was predicted of a text, in words. */
export function predicted(line) {
  if (line.error) return line.error;
  if (Array.isArray(line.predicted)) return line.predicted.join(", ") || "no label";
  return String(line.predicted);
}

/** How fast it came. */
export function stopwatch() {
  const begin = performance.now();
  let first = null, count = 0;
  return {
    count(tokens) { first ??= performance.now(); count += tokens; },
    words() {
      if (first === null) return "";
      const rest = (performance.now() - first) / 1000;
      const rate = rest > 0.05 && count > 8 ? `, then ${Math.round((count - 4) / rest)} tokens/s` : "";
      return `${count} token${count === 1 ? "" : "s"}; the first after ${Math.round(first - begin)} ms${rate}`;
    },
  };
}

export const REASONS = {
  eos: "The model ended the text.", stop: "The model ended the text.",
  length: "Cut at the number of tokens that were asked for, or at the end of what the model reads.",
};
