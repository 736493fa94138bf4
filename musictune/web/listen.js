// What the page does: asks for a trial, lets it be heard, sends the answer, and loses none.

import { listenToKeys } from "./keys.js";
import { Player } from "./player.js";
import { Problem, kept, look, send } from "./server.js";

const $ = (id) => document.getElementById(id);
const each = (selector, act) => document.querySelectorAll(selector).forEach(act);
const lasting = kept(() => localStorage);
const tab = kept(() => sessionStorage);
const player = new Player([...document.querySelectorAll(".side")]);
const SECTIONS = ["ask", "trial", "waiting", "done"];
const MOST_GONE = 3; // in a row: then it is no single file

let rater = "";
let trial = null;
let rating = false;
let why = new Set();
let begun = 0; // when the first sound was heard, ms
let busy = false;
let retry = null;
let gone = 0;
let timer = 0;
let rated = false;

const say = (text) => ($("status").textContent = text);

function note(text) {
  $("note").textContent = text;
  $("note").hidden = !text;
}

function show(section) {
  for (const name of SECTIONS) $(name).hidden = name !== section;
  $("far").hidden = $("rater").hidden = section === "ask";
  $("name").textContent = rater;
}

function focusOn(element) {
  const active = document.activeElement;
  if (!active || active === document.body || !active.checkVisibility()) {
    element.focus({ preventScroll: true });
  }
}

// Says what went wrong; nothing else can be done before `again` was tried.
function problem(error, again, before = "") {
  retry = again;
  $("what").textContent = `${before}${error.message}`;
  $("problem").hidden = false;
  $("again").focus();
  refresh();
}

function solved() {
  retry = null;
  $("problem").hidden = true;
}

function progress(far) {
  const { answered, total, making } = far;
  const ready = making && making.ready < making.planned && !making.trouble;
  $("count").textContent =
    `${answered} of ${total}` + (ready ? ` · ${making.ready} of ${making.planned} pairs made` : "");
  $("progress").max = Math.max(total, 1);
  $("progress").value = answered;
  if (making) {
    $("making").textContent = `${making.ready} of ${making.planned} pairs are made so far.`;
  }
  if (making && making.trouble) {
    note("No more pairs will be made; the window that runs “musictune listen” says why.");
  }
  return ready;
}

async function next() {
  clearTimeout(timer);
  let given;
  try {
    given = await look("api/trial", { rater });
  } catch (error) {
    if (error.status === 422) return ask(error.message);
    return problem(error, next);
  }
  solved();
  rating = given.mode === "rating";
  const more = progress(given);
  if (given.state === "trial") {
    if (more) timer = setTimeout(watch, 3000);
    return begin(given.trial);
  }
  trial = null;
  player.clear();
  if (given.state === "waiting") {
    show("waiting");
    if (document.activeElement !== $("wait")) focusOn($("wait"));
    timer = setTimeout(next, 1500);
    return;
  }
  show("done");
  const what = rating ? "clips" : "pairs";
  $("all").textContent = given.total
    ? `${rater}, you have answered ${given.answered} of ${given.total} ${what}. That was the last.`
    : `There are no ${what} to hear yet.`;
  say("All done. Thank you.");
  focusOn($("thanks"));
}

async function watch() {
  try {
    if (progress(await look("api/progress", { rater }))) timer = setTimeout(watch, 3000);
  } catch {
    timer = setTimeout(watch, 10000); // The next answer will say it.
  }
}

async function begin(given) {
  const before = tab.get("trial");
  const same = before && before.id === given.id ? before : { heard: [], why: [], begun: 0 };
  trial = given;
  begun = same.begun;
  rated = false;
  why = new Set(same.why);
  show("trial");
  layOut();
  $("prompt").textContent = given.prompt;
  refresh();
  focusOn($("prompt"));
  const address = (sound, beside) => `api/sound/${sound}${beside ? `?beside=${beside}` : ""}`;
  const paths = rating
    ? [address(given.sound)]
    : [address(given.first, given.second), address(given.second, given.first)];
  try {
    await player.load(paths, same.heard);
    gone = 0;
  } catch (error) {
    if (trial !== given) return;
    const missing = error.status === 410 || error.status === 404;
    if (missing && !rating && ++gone < MOST_GONE) {
      note(`The music for “${given.prompt}” is gone, so it was skipped. Nothing else is lost.`);
      return answer("skip", ["gone"]);
    }
    const text = missing
      ? "The music is gone from where it was. Put it back, then try again."
      : error.message;
    problem(new Problem(0, text), next);
  }
}

function layOut() {
  each(".side", (side, i) => (side.hidden = rating && i === 1));
  each("[data-pair]", (part) => (part.hidden = rating));
  each("[data-rating]", (part) => (part.hidden = !rating));
  each("[data-side='0'] h2", (title) => (title.textContent = rating ? "The music" : "Music 1"));
  $("over").textContent = rating ? "Made for" : "Both were made for";
  $("sides").classList.toggle("single", rating);
  $("pair").hidden = $("skip").hidden = rating;
  $("rating").hidden = !rating;
  $("value").value = 50;
  $("shown").textContent = "–";
}

function keep() {
  if (!trial) return;
  const heard = player.sides.map((side) => side.heard);
  tab.set("trial", { id: trial.id, heard, why: [...why], begun });
}

// Everything that can be seen of the state.
function refresh() {
  const ready = trial && player.enough && !retry && !busy;
  each("[data-choice], #rate", (button) => {
    const off = !ready || (button.id === "rate" && !rated);
    button.setAttribute("aria-disabled", String(off));
  });
  each("[data-why]", (button) => {
    button.setAttribute("aria-pressed", String(why.has(button.dataset.why)));
  });
  for (const side of player.sides) refreshSide(side);
  const left = player.sides.filter((side) => !side.enough).map((side) => side.number + 1);
  let hint = "Which do you prefer?";
  if (rating) hint = rated ? "" : "Move the slider to where it belongs.";
  if (left.length === 2) hint = "Listen to both first, at least 3 seconds of each.";
  else if (left.length && rating) hint = "Listen first, at least 3 seconds.";
  else if (left.length) hint = `Now listen to music ${left[0]}, at least 3 seconds.`;
  if ($("hint").textContent !== hint) $("hint").textContent = hint;
}

function refreshSide(side) {
  const on = side.number === player.current;
  const sounding = on && player.playing;
  const at = Math.min(player.position, side.seconds);
  const name = rating ? "the music" : `music ${side.number + 1}`;
  side.article.classList.toggle("on", on);
  side.article.classList.toggle("sounding", sounding);
  side.wave.at(side.seconds ? at / side.seconds : 0);
  const button = side.article.querySelector(".play");
  const label = `${sounding ? "Pause" : "Play"} ${name}`;
  if (button.getAttribute("aria-label") !== label) button.setAttribute("aria-label", label);
  const heard = side.enough ? "✓ heard" : "";
  const mark = side.article.querySelector(".heard");
  if (mark.textContent !== heard) mark.textContent = heard;
  const clock = (s) => `${Math.floor(s / 60)}:${String(Math.floor(s % 60)).padStart(2, "0")}`;
  side.article.querySelector(".time").textContent = side.seconds
    ? `${clock(at)} / ${clock(side.seconds)}`
    : "loading …";
  side.canvas.setAttribute("aria-valuemax", side.seconds.toFixed(1));
  side.canvas.setAttribute("aria-valuenow", at.toFixed(1));
  const text = `${Math.floor(at)} of ${Math.round(side.seconds)} seconds`;
  side.canvas.setAttribute("aria-valuetext", text);
}

function answer(choice, tags = [...why]) {
  if (!trial || busy || retry) return undefined;
  if (choice !== "skip" && !player.enough) return say($("hint").textContent);
  const seconds = begun ? (Date.now() - begun) / 1000 : 0;
  return deliver("api/vote", { trial: trial.id, choice, why: tags, seconds });
}

function rate() {
  if (!trial || busy || retry || !rating) return undefined;
  if (!player.enough || !rated) return say($("hint").textContent);
  return deliver("api/rate", { trial: trial.id, value: Number($("value").value), why: [...why] });
}

// Kept here until the server has said that it keeps it.
async function deliver(path, body) {
  busy = true;
  player.pause();
  refresh();
  lasting.set("pending", { rater, path, body });
  try {
    await send(path, body);
    say(body.choice === "skip" ? "Skipped." : "Kept. Here is the next.");
    if (!(body.why || []).includes("gone")) note("");
  } catch (error) {
    if (error.status !== 409 && error.status !== 422) {
      busy = false;
      const again = () => deliver(path, body);
      return problem(error, again, "Your answer could not be sent yet; it is kept here. ");
    }
    note(`One answer was not taken: ${error.message}.`);
  }
  lasting.set("pending", null);
  tab.set("trial", null);
  trial = null;
  player.clear();
  busy = false;
  return next();
}

async function undo() {
  if (busy || retry || !rater) return;
  player.pause();
  try {
    const { trial: reopened } = await send("api/undo", { rater });
    say(reopened ? "Your last answer is open again." : "There is no answer to undo.");
    note("");
    if (reopened) await next();
  } catch (error) {
    problem(error, next);
  }
}

function ask(message = "") {
  clearTimeout(timer);
  player.clear();
  trial = null;
  solved();
  show("ask");
  say(message);
  $("rater-name").value = rater;
  $("rater-name").focus();
}

function enter(name) {
  rater = name.trim();
  if (!rater) return ask("A name is needed, or any word that stands for you.");
  lasting.set("rater", rater);
  const pending = lasting.get("pending");
  if (!pending) return next();
  show("waiting");
  return deliver(pending.path, pending.body);
}

player.addEventListener("change", refresh);
player.addEventListener("begun", () => {
  begun ||= Date.now();
  keep();
});
player.addEventListener("trouble", (event) => say(`This could not be played: ${event.detail}`));
addEventListener("pagehide", keep);
$("again").addEventListener("click", () => {
  const again = retry;
  solved();
  if (again) again();
});
$("who").addEventListener("submit", (event) => {
  event.preventDefault();
  say("");
  enter($("rater-name").value);
});
$("change").addEventListener("click", () => {
  if (!busy && !retry) ask();
});
each("[data-choice]", (button) => {
  button.addEventListener("click", () => answer(button.dataset.choice));
});
each("[data-why]", (button) => {
  button.addEventListener("click", () => {
    const tag = button.dataset.why;
    if (!why.delete(tag)) why.add(tag);
    keep();
    refresh();
  });
});
$("value").addEventListener("input", () => {
  rated = true;
  $("shown").textContent = $("value").value;
  refresh();
});
$("rate").addEventListener("click", rate);
$("skip").addEventListener("click", () => answer("skip"));
$("undo").addEventListener("click", undo);
$("undo-done").addEventListener("click", undo);
$("use-keys").checked = lasting.get("keys") !== false;
$("use-keys").addEventListener("change", () => lasting.set("keys", $("use-keys").checked));

const inTrial = (act) => () => $("trial").hidden || act();
listenToKeys(
  {
    " ": inTrial(() => player.toggle()),
    x: inTrial(() => {
      player.other();
      if (!rating) say(`Music ${player.current + 1}`);
    }),
    ArrowLeft: inTrial(() => player.seek(player.position - 1)),
    ArrowRight: inTrial(() => player.seek(player.position + 1)),
    1: inTrial(() => rating || answer("first")),
    2: inTrial(() => rating || answer("second")),
    "=": inTrial(() => rating || answer("tie")),
    s: inTrial(() => rating || answer("skip")),
    Enter: inTrial(() => rate()),
    u: () => $("ask").hidden && undo(),
  },
  () => $("use-keys").checked,
);

const known = lasting.get("rater");
if (typeof known === "string" && known) enter(known);
else ask();
