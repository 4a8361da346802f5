// Chat, continuation and labels.
import { ask, asker, el, field, labelRows, predicted, REASONS, sampling, speaker, state, stopwatch } from "./common.js";

const button = (text, onclick, kind = "quiet") => el("button", { type: "button", class: kind, onclick }, text);
const tokensInput = (value) => el("input", { type: "number", min: 1, max: state.limits.new_tokens, value });

export function makeContinue() {
  const prompt = el("textarea", { rows: 3, value: "The function returns", spellcheck: false });
  const count = tokensInput(state.defaults.text);
  const stopAt = el("input", { placeholder: "none", spellcheck: false });
  const voice = speaker();
  const output = el("p", { class: "text output" });
  const go = button("Continue", () => run(), ""), stop = button("Stop", () => asking.stop(), "stop");
  const card = el("section", { class: "card", hidden: true }, output);
  const asking = asker(voice, (busy) => { stop.hidden = !busy; output.classList.toggle("wait", busy); });
  stop.hidden = true;
  const clear = button("Clear", () => { asking.stop(); prompt.value = ""; card.hidden = true; voice.say(""); prompt.focus(); });

  async function run() {
    const given = prompt.value, watch = stopwatch();
    const said = el("span", { class: "new" });
    output.replaceChildren(el("span", { class: "given" }, given), said);
    card.hidden = false;
    await asking.run(async (signal, waiting) => {
      voice.say("Writing ...");
      await ask("continue_text", {
        model: state.model, prompt: given, max_new_tokens: Number(count.value), stop: stopAt.value ? [stopAt.value] : [], ...sampling(),
      }, (event) => {
        waiting(event);
        if (event.event === "tokens") watch.count(event.tokens.length);
        else if (event.event === "text") { said.append(event.text); voice.say("Writing ..."); }
        else if (event.event === "done") {
          said.textContent = event.text;
          voice.say([watch.words(), REASONS[event.finish_reason], event.note].filter(Boolean).join(". "));
        }
      }, signal);
    });
  }

  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); run(); }
  });
  return {
    name: "continue", title: "Continue", panel: el("div", {},
      el("section", { class: "card" }, field("Text", prompt, "Ctrl+Enter continues it"),
        el("div", { class: "fields" }, field("New tokens", count, "", "narrow"), field("End before", stopAt, "a text, where it should stop")),
        el("div", { class: "row" }, go, stop, clear), ...voice.nodes), card),
    onModel() { asking.stop(); card.hidden = true; voice.say(""); },
  };
}

export function makeChat() {
  const talk = el("div", { class: "talk", role: "log", "aria-label": "Conversation", tabIndex: 0 });
  const system = el("input", { placeholder: "none", spellcheck: false });
  const count = tokensInput(state.defaults.chat);
  const message = el("textarea", { rows: 2, placeholder: "Write a message", "aria-label": "Message" });
  const voice = speaker();
  const send = button("Send", () => run(), ""), stop = button("Stop", () => asking.stop(), "stop");
  const asking = asker(voice, (busy) => { stop.hidden = !busy; send.disabled = busy; });
  stop.hidden = true;
  let turns = [], nodes = [];

  function clear() {
    asking.stop();
    turns = []; nodes = [];
    talk.replaceChildren(el("p", { class: "empty" }, "Say something. The model reads the conversation in the template it was trained with."));
    voice.say(""); voice.fail("");
  }

  function bubble(role, text) {
    const node = el("div", { class: `turn ${role}` }, el("span", { class: "visually-hidden" }, role === "user" ? "You: " : "Model: "), text);
    talk.append(node);
    talk.scrollTop = talk.scrollHeight;
    return node;
  }

  async function run() {
    const said = message.value.trim();
    if (!said || asking.busy) return;
    if (!nodes.length) talk.replaceChildren();
    message.value = "";
    const asked = bubble("user", said), answer = bubble("assistant", "");
    const written = el("span", { class: "wait" });
    answer.append(written);
    const watch = stopwatch();
    const kept = turns;
    let text = "", dropped = 0;
    const done = await asking.run(async (signal, waiting) => {
      voice.say("Writing ...");
      await ask("chat", {
        model: state.model, turns: kept, message: said, system: system.value, max_new_tokens: Number(count.value), ...sampling(),
      }, (event) => {
        waiting(event);
        if (event.event === "tokens") watch.count(event.tokens.length);
        else if (event.event === "text") {
          const atEnd = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 60;
          text += event.text;
          written.append(event.text);
          if (atEnd) talk.scrollTop = talk.scrollHeight;
        } else if (event.event === "done") {
          text = event.text;
          dropped = event.num_dropped;
          voice.say([watch.words(), event.finish_reason === "length" ? REASONS.length : ""].filter(Boolean).join(". "));
        }
      }, signal);
    });
    written.classList.remove("wait");
    if (!answer.isConnected) return; // cleared
    text = text.trim();
    written.textContent = text;
    if (!done && !text) { // nothing came: the message can be mended and sent again
      asked.remove(); answer.remove();
      message.value ||= said;
      return;
    }
    if (!done) answer.append(el("small", {}, "stopped"));
    nodes.push(asked, answer);
    turns = [...kept.slice(dropped), { role: "user", content: said }, { role: "assistant", content: text }];
    nodes.slice(0, nodes.length - turns.length).forEach((node) => node.classList.add("forgotten"));
    if (dropped) voice.say(`${dropped} turns no longer fit and were forgotten.`);
  }

  message.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); run(); }
  });
  clear();
  return {
    name: "chat", title: "Chat", panel: el("div", {},
      el("section", { class: "card" },
        el("div", { class: "fields" }, field("System prompt", system, "what the model is told before"), field("New tokens", count, "", "narrow"))),
      el("section", { class: "card" }, talk,
        el("div", { class: "row" }, el("div", { class: "grow" }, message), send, stop, button("Clear", clear)), ...voice.nodes)),
    onModel: clear,
  };
}

export function makeClassify() {
  const texts = el("textarea", { rows: 4, placeholder: "One text on each line", spellcheck: false });
  const temperature = el("input", { type: "number", min: 0, step: "any", value: 1 });
  const voice = speaker();
  const results = el("div");
  const asking = asker(voice);

  async function run() {
    await asking.run(async (signal, waiting) => {
      voice.say("Reading ...");
      await ask("classify", {
        model: state.model, texts: texts.value.split("\n"), temperature: Number(temperature.value),
      }, (event) => {
        waiting(event);
        if (event.event !== "labels") return;
        voice.say(event.note ?? `${event.lines.length} text${event.lines.length === 1 ? "" : "s"} read.`);
        results.replaceChildren(...event.lines.map((line) => el("section", { class: "card" },
          el("div", { class: "head" }, el("h2", {}, el("bdi", {}, predicted(line))), el("span", { class: "hint" }, line.text)), labelRows(line))));
      }, signal);
    });
  }

  texts.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); run(); }
  });
  return {
    name: "classify", title: "Classify", panel: el("div", {},
      el("section", { class: "card" }, field("Texts", texts, "one on each line; Ctrl+Enter"),
        el("div", { class: "fields" }, field("Temperature", temperature, "divides the logits; see jaxlm evaluate --calibrate-on", "grow")),
        el("div", { class: "row" }, button("Classify", run, "")), ...voice.nodes), results),
    onModel() { results.replaceChildren(); voice.say(""); },
  };
}
