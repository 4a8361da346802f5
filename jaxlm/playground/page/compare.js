// Two checkpoints, the same question.
import { ask, asker, el, field, labelRows, legend, predicted, REASONS, sampling, speaker, state, tokenRows } from "./common.js";

export function makeCompare() {
  const labels = state.models[0].panels.includes("classify");
  const prompt = el("textarea", { rows: 3, value: labels ? "" : "The function returns", placeholder: labels ? "One text on each line" : "", spellcheck: false });
  const count = el("input", { type: "number", min: 1, max: state.limits.new_tokens, value: 40 });
  const top = el("input", { type: "number", min: 1, max: state.limits.top, value: 8 });
  const voice = speaker();
  const go = el("button", { type: "button", onclick: () => run() }, "Compare");
  const stop = el("button", { type: "button", class: "stop", hidden: true, onclick: () => asking.stop() }, "Stop");
  const columns = el("div", { class: "columns" });
  const asking = asker(voice, (busy) => { stop.hidden = !busy; });

  async function labelled(model, column, signal, waiting) {
    await ask("classify", { model, texts: prompt.value.split("\n") }, (event) => {
      waiting(event);
      if (event.event === "labels") column.append(...event.lines.map((line) => el("div", {},
        el("p", { class: "hint text" }, line.text), el("h3", {}, el("bdi", {}, predicted(line))), labelRows(line))));
    }, signal);
  }

  async function distributed(model, column, signal, waiting) {
    await ask("next_token", { model, prompt: prompt.value, top: Number(top.value), ...sampling() }, (event) => {
      waiting(event);
      if (event.event !== "distribution") return;
      const found = event.distribution;
      column.append(el("p", { class: "hint" }, `${found.ids.length} tokens in; entropy ${found.entropy_bits.toFixed(2)} bits; sampled from ${found.num_kept.toLocaleString("en")} tokens`),
        tokenRows(found));
    }, signal);
  }

  async function continued(model, column, signal, waiting) {
    const said = el("span", { class: "new" }), text = el("p", { class: "text wait" }, el("span", { class: "given" }, prompt.value), said);
    column.append(el("h3", {}, "Continuation"), text);
    try {
      await ask("continue_text", { model, prompt: prompt.value, max_new_tokens: Number(count.value), ...sampling() }, (event) => {
        waiting(event);
        if (event.event === "text") said.append(event.text);
        else if (event.event === "done") {
          said.textContent = event.text;
          if (event.finish_reason !== "length") column.append(el("p", { class: "hint" }, REASONS[event.finish_reason]));
        }
      }, signal);
    } finally {
      text.classList.remove("wait");
    }
  }

  async function run() {
    const parts = state.models.map((model) => el("section", { class: "card" }, el("h2", {}, el("bdi", {}, model.title))));
    columns.replaceChildren(...parts);
    await asking.run(async (signal, waiting) => {
      voice.say("Computing ...");
      for (const step of labels ? [labelled] : [distributed, continued]) {
        for (const model of [0, 1]) await step(model, parts[model], signal, waiting);
      }
      voice.say("");
    });
  }

  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); run(); }
  });
  return {
    name: "compare", title: "Compare", panel: el("div", {},
      el("section", { class: "card" }, field(labels ? "Texts" : "Prompt", prompt, labels ? "one on each line; Ctrl+Enter" : "the same seed and settings for both; Ctrl+Enter"),
        ...(labels ? [] : [el("div", { class: "fields" }, field("New tokens", count, "", "narrow"), field("Rows", top, "", "narrow"))]),
        el("div", { class: "row" }, go, stop), ...voice.nodes, ...(labels ? [] : [legend()])), columns),
    onModel() {},
  };
}
