// Puts the page together: which models there are, which panels they have.
import { el, state } from "./common.js";
import { makeCompare } from "./compare.js";
import { makeNext } from "./next.js";
import { makeChat, makeClassify, makeContinue } from "./texts.js";

const MAKERS = { next: makeNext, chat: makeChat, continue: makeContinue, classify: makeClassify };
const $ = (id) => document.getElementById(id);
const made = new Map();
let current = null;

function panelNames() {
  const own = state.models[state.model].panels;
  return state.models.length > 1 ? [...own, "compare"] : own;
}

function panelOf(name) {
  if (!made.has(name)) {
    const one = name === "compare" ? makeCompare() : MAKERS[name]();
    one.panel.id = `panel-${name}`;
    one.panel.setAttribute("role", "tabpanel");
    one.panel.setAttribute("aria-labelledby", `tab-${name}`);
    $("panels").append(one.panel);
    made.set(name, one);
  }
  return made.get(name);
}

function select(name, focus = false) {
  current = name;
  const chosen = panelOf(name);
  for (const one of made.values()) one.panel.hidden = one !== chosen;
  for (const tab of $("tabs").children) {
    const on = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", String(on));
    tab.tabIndex = on ? 0 : -1;
    if (on && focus) tab.focus();
  }
  $("models").hidden = name === "compare";
  const about = $("about"), model = state.models[state.model];
  about.textContent = name === "compare" ? state.models.map((one) => one.title).join("  |  ")
    : `${model.title} · ${model.kind} · ${(model.num_params / 1e6).toFixed(1)} M parameters`;
}

function drawTabs() {
  const names = panelNames();
  $("tabs").replaceChildren(...names.map((name) => el("button", {
    type: "button", id: `tab-${name}`, role: "tab", "aria-controls": `panel-${name}`, onclick: () => select(name),
  }, panelOf(name).title)));
  for (const [name, one] of made) if (!names.includes(name)) one.panel.hidden = true;
  $("settings").hidden = names[0] === "classify";
  $("main").classList.toggle("alone", names[0] === "classify");
  select(names.includes(current) ? current : names[0]);
}

function drawModels() {
  if (state.models.length < 2) return;
  $("models").replaceChildren(...state.models.map((model, i) => el("button", {
    type: "button", role: "radio", "aria-checked": String(i === state.model), onclick: () => {
      if (i === state.model) return;
      state.model = i;
      for (const one of made.values()) one.onModel();
      drawModels();
      drawTabs();
      $("models").children[i].focus();
    },
  }, el("bdi", {}, model.title))));
}

$("tabs").addEventListener("keydown", (event) => {
  const names = panelNames(), at = names.indexOf(current);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: names.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  select(names[(to + names.length) % names.length], true);
});

$("sampling").addEventListener("submit", (event) => event.preventDefault());
$("sampling").addEventListener("input", (event) => {
  if (event.target.id === "temperature-range") $("temperature").value = event.target.value;
  if (event.target.id === "temperature") $("temperature-range").value = event.target.value;
  made.get("next")?.onSampling();
});
$("dice").addEventListener("click", () => {
  $("seed").value = Math.floor(Math.random() * 1e6);
  made.get("next")?.onSampling();
});

const remembered = (() => { try { return localStorage.getItem("theme"); } catch { return null; } })();
if (remembered === "light" || remembered === "dark") document.documentElement.dataset.theme = remembered;
$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch { /* private windows have none */ }
});
if (matchMedia("(max-width: 60rem)").matches) $("settings").open = false;

try {
  const answer = await (await fetch("/api/models")).json();
  if (answer.event === "error") throw new Error(answer.message);
  Object.assign(state, answer);
  drawModels();
  drawTabs();
} catch (error) {
  $("fatal").textContent = `The playground does not answer (${error.message}). Reload the page once it runs.`;
  $("fatal").hidden = false;
}
