// Tokens -> distribution -> pick, step by step.
import { ask, asker, el, field, legend, percent, sampling, speaker, state, stopwatch, tokenRows, visible, wordRows } from "./common.js";

export function makeNext() {
  const prompt = el("textarea", { rows: 2, value: "The function returns", spellcheck: false });
  const words = el("input", { placeholder: "list, string, value", spellcheck: false });
  const top = el("input", { type: "number", min: 1, max: state.limits.top, value: 10 });
  const count = el("input", { type: "number", min: 1, max: state.limits.new_tokens, value: 10, class: "short", "aria-label": "How many tokens" });
  const button = (text, onclick, kind = "quiet") => el("button", { type: "button", class: kind, onclick }, text);
  const show = button("Show what comes next", () => begin(), "");
  const sampled = button("Pick the sampled one", () => pick(found.sampled), "");
  const greedy = button("Pick the greedy one", () => pick(found.greedy));
  const several = button("Next", () => next());
  const undo = button("Undo", () => { picked.length -= history.pop(); update(); });
  const stop = button("Stop", () => asking.stop(), "stop");
  const voice = speaker();
  const chips = el("ol", { class: "chips", "aria-label": "Tokens" });
  const text = el("p", { class: "text" });
  const tokensHint = el("span", { class: "hint" });
  const facts = el("span", { class: "hint" });
  const chart = el("div"), candidates = el("div");
  const results = el("div", { hidden: true },
    el("section", { class: "card" }, el("div", { class: "head" }, el("h2", {}, "1 · Tokens"), tokensHint), chips, el("p", {}), text),
    el("section", { class: "card" }, el("div", { class: "head" }, el("h2", {}, "2 · Distribution over the next token"), facts), legend(), chart),
    el("section", { class: "card" },
      el("div", { class: "head" }, el("h2", {}, "3 · Pick"), el("span", { class: "hint" }, "or pick any row above")),
      el("div", { class: "row" }, sampled, greedy, several, count, el("span", { class: "hint" }, "tokens"), undo, stop)),
    candidates);
  const panel = el("div", {},
    el("section", { class: "card" }, field("Prompt", prompt, "Ctrl+Enter shows what comes next"),
      el("div", { class: "fields" }, field("Candidate words", words, "separated by commas"), field("Rows", top, "", "narrow")),
      el("div", { class: "row" }, show), ...voice.nodes),
    results);

  let given = "", picked = [], history = [], found = null, written = "";
  const asking = asker(voice, (busy) => {
    stop.hidden = !busy;
    for (const one of [sampled, greedy, several, undo]) one.disabled = busy || found === null;
    undo.disabled ||= history.length === 0;
  });
  stop.hidden = true;

  function drawTokens() {
    const all = found ? found.ids.map((id, i) => ({ id, piece: found.pieces[i] })) : [];
    const numPrompt = all.length - (found ? found.numPicked : 0);
    const shown = [...all.slice(0, numPrompt), ...picked];
    chips.replaceChildren(...shown.map((token, i) => el("li", {
      class: i < numPrompt ? "chip" : "chip picked",
      title: i < numPrompt ? `id ${token.id}` : `id ${token.id}, picked at ${percent(token.p)}`,
    }, el("bdi", {}, visible(token.piece)), el("small", {}, String(token.id)))));
    chips.scrollTop = chips.scrollHeight;
    tokensHint.textContent = `${numPrompt} of the prompt` + (picked.length ? `, ${picked.length} picked` : "");
    text.replaceChildren(el("span", { class: "given" }, given), el("span", { class: "new" }, written));
  }

  function drawDistribution() {
    drawTokens();
    const covered = found.top.at(-1).cumulative_p;
    facts.textContent = `entropy ${found.entropy_bits.toFixed(2)} bits; sampled from ${found.num_kept.toLocaleString("en")} of `
      + `${state.models[state.model].vocab_size.toLocaleString("en")} tokens, ${found.sampled_entropy_bits.toFixed(2)} bits; the rows hold ${percent(covered)}`;
    const focused = document.activeElement?.closest?.(".bars") !== null && chart.contains(document.activeElement);
    const rows = tokenRows(found, pick);
    chart.replaceChildren(rows);
    if (focused) rows.querySelector("button")?.focus();
    sampled.replaceChildren("Pick the sampled one: ", el("bdi", {}, visible(found.sampled.piece)));
    greedy.replaceChildren("Greedy: ", el("bdi", {}, visible(found.greedy.piece)));
    candidates.replaceChildren(...(found.candidates.length ? [el("section", { class: "card" },
      el("div", { class: "head" }, el("h2", {}, "Candidate words"), el("span", { class: "hint" }, "share among these; the whole word, by the chain rule")),
      wordRows(found.candidates))] : []));
    results.hidden = false;
  }

  function settings() {
    return { model: state.model, prompt: given, picked: picked.map((token) => token.id), ...sampling() };
  }

  async function fetchDistribution(signal, waiting) {
    voice.say("Computing ...");
    await ask("next_token", { ...settings(), top: Number(top.value), candidates: words.value.split(",") }, (event) => {
      waiting(event);
      if (event.event !== "distribution") return;
      found = { ...event.distribution, numPicked: picked.length };
      written = found.prompt.slice(given.length);
      drawDistribution();
      const last = picked.at(-1);
      voice.say(event.note ?? (last && event.ends.includes(last.id) ? "The model ends its text with this token; what comes after it means little." : ""));
    }, signal);
  }

  const update = () => asking.run(fetchDistribution);

  function begin() {
    given = prompt.value;
    picked = []; history = []; found = null; written = "";
    results.hidden = true;
    return update();
  }

  async function pick(token) {
    if (asking.busy) return;
    picked.push({ id: token.id, piece: token.piece, p: token.p });
    history.push(1);
    const done = await update();
    if (!done && history.length) { picked.length -= history.pop(); }
  }

  async function next() {
    const before = picked.length, watch = stopwatch();
    await asking.run(async (signal, waiting) => {
      voice.say("Picking ...");
      try {
        await ask("continue_text", { ...settings(), max_new_tokens: Number(count.value) }, (event) => {
          waiting(event);
          if (event.event === "text") { written += event.text; drawTokens(); }
          else if (event.event === "tokens") {
            watch.count(event.tokens.length);
            picked.push(...event.tokens);
          } else if (event.event === "done") {
            picked.length = before;
            picked.push(...event.tokens.map((token) => ({ ...token, p: Math.exp(token.logprob) })));
          }
        }, signal);
      } finally {
        if (picked.length > before) history.push(picked.length - before);
      }
      const said = watch.words();
      await fetchDistribution(signal, waiting);
      voice.say(said || "The model ends the text here.");
    });
    if (found && found.numPicked !== picked.length) await update();
  }

  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); begin(); }
  });
  for (const one of [words, top]) one.addEventListener("change", () => { if (found) update(); });
  let soon = 0;
  return {
    name: "next", title: "Next token", panel,
    onSampling() { clearTimeout(soon); soon = setTimeout(() => { if (found) update(); }, 250); },
    onModel() { found = null; picked = []; history = []; results.hidden = true; voice.say(""); asking.stop(); },
  };
}
