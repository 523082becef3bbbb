// The judging: which item is shown, what a key does, what was said. What is said is the outbox's to save.

import { Kept, Outbox, ask } from "./outbox.js";
import { Marking } from "./marking.js";

const $ = (id) => document.getElementById(id);
const KIND_WORDS = {
  fabricated: ["Fabricated", "names what does not exist"],
  wrong_inference: ["Wrong inference", "does not follow from the source"],
  contradiction: ["Contradiction", "says the opposite of the source"],
  unsupported_detail: ["Unsupported detail", "the source does not say so"],
};

const REASON_WORDS = { accurate: "more accurate", complete: "more complete", clear: "clearer", concise: "more concise", safe: "safer" };

const kept = new Kept();
const outbox = new Outbox(kept, tellSaving);
const marking = new Marking(document.querySelector("#answer-0 .text"), keepDraft);

let task, kinds, reasons;
let items = []; // {key}, in the rater's order
let history = []; // {id, item, said, note}: what holds, oldest first
let at = 0; // the item that is shown; items.length: the end
let shown = null; // the key of the item that can be read
let shownAt = 0;
let chosenReasons = new Set();
const sheets = new Map();

const said = (key) => history.findLast((entry) => entry.item === key);
const isOpen = (item) => !said(item.key);
const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(8)), (b) => b.toString(16).padStart(2, "0")).join("");

async function start() {
  await outbox.send();
  const state = await untilThere("state");
  ({ task, kinds, reasons, items, history } = state);
  document.title = `${state.rater}: assessment`;
  makeButtons();
  makeHelp();
  const place = Number(location.hash.slice(1)) - 1;
  const first = items.findIndex(isOpen);
  show(items[place] && (first < 0 || location.hash) ? place : first < 0 ? items.length : first);
}

/** The server's answer, however long it is away. */
async function untilThere(path) {
  for (;;) {
    const answer = await ask(path);
    if (answer.value) {
      tellSaving(outbox.unsaved ? "saving" : "saved", outbox.unsaved);
      return answer.value;
    }
    tellSaving(answer.refused ? "refused" : "away", outbox.unsaved, answer.sentence);
    await outbox.pause();
  }
}

function sheetOf(key) {
  if (!sheets.has(key)) sheets.set(key, untilThere(`items/${encodeURIComponent(key)}`));
  return sheets.get(key);
}

async function show(place) {
  at = place;
  window.history.replaceState(null, "", place < items.length ? `#${place + 1}` : "#end");
  showProgress();
  const over = place >= items.length;
  if (over) shown = null;
  $("done").hidden = !over;
  if (over) {
    $("sheet").hidden = $("judging").hidden = true;
    $("done-words").textContent = `You have judged all ${items.length} items.`;
    return;
  }
  const key = items[place].key;
  shown = null; // a key that is pressed now means no item
  $("sheet").ariaBusy = $("judging").ariaBusy = "true";
  const sheet = await sheetOf(key);
  if (at !== place) return; // another one was asked for meanwhile
  shown = key;
  $("sheet").ariaBusy = $("judging").ariaBusy = "false";
  fill(sheet, kept.read(`draft ${key}`));
  $("sheet").hidden = $("judging").hidden = false;
  shownAt = performance.now();
  const next = nextOpen(place);
  if (next < items.length) sheetOf(items[next].key);
}

function fill(sheet, draft) {
  const entry = said(sheet.key);
  const before = draft ?? { spans: entry?.said.spans ?? [], reasons: entry?.said.reasons ?? [], note: entry?.note ?? "" };
  const pair = sheet.answers.length === 2;
  write(document.querySelector("#prompt .text"), sheet.prompt, "(no prompt)");
  document.querySelector("#answer-0 h2").textContent = pair ? "A" : "Answer";
  $("answer-1").hidden = !pair;
  marking.show(sheet.answers[0], pair ? [] : before.spans, !pair);
  if (!sheet.answers[0]) write(marking.element, "", "(an empty answer)");
  if (pair) write(document.querySelector("#answer-1 .text"), sheet.answers[1], "(an empty answer)");
  const source = sheet.context !== null || sheet.reference !== null;
  $("source").hidden = !source;
  document.querySelector("#source h2").hidden = $("context").hidden = sheet.context === null;
  write($("context"), sheet.context ?? "", "(an empty source)");
  $("reference").hidden = sheet.reference === null;
  write(document.querySelector("#reference .text"), sheet.reference ?? "", "(an empty reference)");
  $("columns").className = pair && source ? "three" : pair || source ? "" : "alone";
  $("note").value = before.note;
  chosenReasons = new Set(before.reasons);
  document.querySelectorAll("section").forEach((section) => (section.scrollTop = 0));
  if (matchMedia("(max-width: 52rem)").matches) scrollTo(0, 0);
  showSaid();
  showHint();
}

function write(element, text, ifEmpty) {
  element.textContent = text || ifEmpty;
  element.classList.toggle("empty", !text);
}

function showProgress() {
  const done = items.filter((item) => !isOpen(item)).length;
  $("position").textContent = at < items.length ? `Item ${at + 1} of ${items.length}` : "The end";
  $("judged").textContent = `${done} judged`;
  $("progress").max = items.length;
  $("progress").value = done;
  $("undo").disabled = !history.length;
  $("previous").disabled = at === 0;
}

/** Which buttons are pressed. */
function showSaid() {
  const entry = said(items[at].key)?.said;
  const value = entry && (task === "hallucination" ? (entry.present ? entry.kind : "none") : entry.side);
  for (const button of $("verdicts").children) button.setAttribute("aria-pressed", button.dataset.value === value);
  for (const button of $("reasons").children) button.setAttribute("aria-pressed", chosenReasons.has(button.dataset.value));
  $("verdicts").classList.remove("asks");
  const again = entry ? " (you have answered; a new answer takes its place)" : "";
  $("question").textContent = (task === "hallucination" ? "Does the answer hallucinate?" : "Which answer is better?") + again;
}

function showHint() {
  const n = marking.spans.length;
  const marks = n ? `${n} passage${n > 1 ? "s" : ""} marked. ` : "";
  $("marking-hint").hidden = task !== "hallucination";
  $("marking-hint").textContent = !marking.active
    ? `${marks}Select words to mark a passage, or press m; a click on a mark removes it.`
    : marking.choosing
      ? `${marks}Arrows: extend. Space: the passage ends here.`
      : `${marks}Arrows: move. Space: a passage begins here. Backspace: remove the mark. Esc: leave.`;
}

function keepDraft() {
  showHint();
  const draft = { spans: marking.spans, reasons: [...chosenReasons], note: $("note").value };
  if (shown !== null) kept.write(`draft ${shown}`, draft);
}

function nextOpen(from) {
  const places = [...items.keys()];
  return [...places.slice(from + 1), ...places.slice(0, from)].find((place) => isOpen(items[place])) ?? items.length;
}

function judge(value) {
  const key = shown;
  if (key === null) return;
  marking.finish();
  marking.leave();
  const verdict =
    task === "preference"
      ? { side: value, reasons: [...chosenReasons] }
      : value === "none"
        ? { present: false }
        : { present: true, kind: value, spans: marking.spans };
  const entry = { id: newId(), item: key, said: verdict, note: $("note").value };
  const seconds = (performance.now() - shownAt) / 1000;
  history.push(entry);
  outbox.put("judgements", { id: entry.id, item: key, verdict, note: entry.note, seconds });
  kept.write(`draft ${key}`, null);
  $("note").blur();
  show(nextOpen(at));
}

function undo() {
  const entry = history.pop();
  if (!entry) return;
  outbox.put("undo", { id: newId(), of: entry.id });
  const { spans = [], reasons = [] } = entry.said;
  kept.write(`draft ${entry.item}`, { spans, reasons, note: entry.note });
  show(items.findIndex((item) => item.key === entry.item));
}

function tellSaving(state, unsaved, sentence) {
  $("saving").textContent = { saved: "saved", saving: "saving…", away: "not saved", refused: "not saved" }[state];
  $("done-saved").textContent = unsaved ? "Leave this page open until all is saved." : "Every answer is saved: you can close this page.";
  const lost = unsaved === 1 ? "1 answer is" : `${unsaved} answers are`;
  const kept = unsaved ? ` ${lost} not saved yet and will be.` : "";
  $("away").hidden = state === "saved" || state === "saving";
  $("away").textContent =
    state === "refused" ? `The server refuses: ${sentence}` : `The server does not answer${sentence ? ` (${sentence})` : ""}; trying again.${kept}`;
}

function makeButtons() {
  const button = (value, words, key, title, act) => {
    const made = Object.assign(document.createElement("button"), { type: "button", title });
    made.dataset.value = value;
    made.append(words, " ", Object.assign(document.createElement("kbd"), { textContent: key }));
    made.addEventListener("click", () => act(value));
    return made;
  };
  if (task === "hallucination") {
    const no = button("none", "No", "n", "everything is as the source says", judge);
    no.classList.add("no");
    $("verdicts").append(no, ...kinds.map((kind, i) => button(kind, KIND_WORDS[kind][0], i + 1, KIND_WORDS[kind][1], judge)));
  } else {
    const sides = [["A", "A is better", "a"], ["tie", "Tie", "t"], ["B", "B is better", "b"]];
    $("verdicts").append(...sides.map(([value, words, key]) => button(value, words, key, words, judge)));
    $("reasons").append(...reasons.map((reason, i) => button(reason, REASON_WORDS[reason], i + 1, "a reason, if you like", toggleReason)));
    $("reasons").hidden = false;
  }
}

function toggleReason(reason) {
  if (!chosenReasons.delete(reason)) chosenReasons.add(reason);
  keepDraft();
  showSaid();
}

function makeHelp() {
  const judging =
    task === "hallucination"
      ? [["n", "no hallucination"], ...kinds.map((kind, i) => [String(i + 1), `${KIND_WORDS[kind][0]}: ${KIND_WORDS[kind][1]}`]),
         ["y", "there is one: asks for its type"],
         ["m", "mark a passage: arrows move, Space begins and ends it, Backspace removes it"]]
      : [["a  b  t", "A is better, B is better, tie"], [`1 to ${reasons.length}`, "a reason, before the answer"]];
  const moving = [["c", "write a note (Esc: leave it)"], ["u", "take back the last answer"], ["s", "skip: to the next open item"],
    ["←  →", "the item before, the next one"], ["j  k", "scroll the source"], ["o", "the first open item"], ["?", "this list"]];
  for (const [key, words] of [...judging, ...moving]) {
    const term = document.createElement("dt");
    term.append(...key.split("  ").flatMap((one) => [Object.assign(document.createElement("kbd"), { textContent: one }), " "]));
    $("keys").append(term, Object.assign(document.createElement("dd"), { textContent: words }));
  }
}

/** By half of what is seen of it; on a narrow page, where it has no window of its own, by half of the page. */
function scrollSource(direction) {
  const narrow = matchMedia("(max-width: 52rem)").matches;
  const box = narrow ? document.scrollingElement : $("source");
  box.scrollBy({ top: (direction * box.clientHeight) / 2 });
}

function move(step) {
  show(Math.max(0, Math.min(items.length, at + step)));
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !task || $("help").open) return;
  if (event.target === $("note")) {
    if (event.key === "Escape") $("note").blur();
    return;
  }
  const onButton = event.target.closest("button") && [" ", "Enter"].includes(event.key);
  if (onButton || act(event.key) === false) return;
  event.preventDefault();
}

/** False where the key means nothing. */
function act(key) {
  const judging = shown !== null;
  if (judging && marking.active) {
    if (marking.key(key)) return showHint();
    if (key === "Escape" || key === "m") return marking.leave(), showHint();
  }
  const verdicts = task === "hallucination" ? { n: "none", ...Object.fromEntries(kinds.map((kind, i) => [i + 1, kind])) } : { a: "A", b: "B", t: "tie" };
  const others = {
    s: () => show(nextOpen(at)),
    u: undo,
    o: () => show(nextOpen(items.length)),
    j: () => scrollSource(1),
    k: () => scrollSource(-1),
    ArrowLeft: () => move(-1),
    ArrowRight: () => move(1),
    "?": () => $("help").showModal(),
    ...(judging && { c: () => $("note").focus() }),
    ...(judging && task === "hallucination" && {
      m: () => { marking.enter(); showHint(); },
      y: () => { $("verdicts").classList.add("asks"); $("question").textContent = "Of which type? Press 1 to 4."; },
    }),
    ...(judging && task === "preference" && Object.fromEntries(reasons.map((reason, i) => [i + 1, () => toggleReason(reason)]))),
  };
  if (judging && key in verdicts) return judge(verdicts[key]);
  if (key in others) return others[key]();
  return false;
}

document.addEventListener("keydown", pressed);
$("note").addEventListener("input", keepDraft);
$("previous").addEventListener("click", () => move(-1));
$("next").addEventListener("click", () => move(1));
$("skip").addEventListener("click", () => show(nextOpen(at)));
$("undo").addEventListener("click", undo);
$("help-button").addEventListener("click", () => $("help").showModal());
start();
