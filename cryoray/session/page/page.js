// What saves reloading: live parts that renew themselves, clicks and keys that answer at once; and how
// pictures are shown.
"use strict";
const csrf = document.body.dataset.csrf || "";

function away(is) {
  let sign = document.querySelector(".away");
  if (is && !sign) {
    sign = document.createElement("p");
    sign.className = "away";
    sign.setAttribute("role", "status");
    sign.textContent = "the service does not answer";
    document.body.append(sign);
  } else if (!is && sign) sign.remove();
}

async function renew(part) {
  const answer = await fetch(part.dataset.part, { headers: { Accept: "text/html" }, redirect: "error" });
  if (!answer.ok) throw new Error(answer.status);
  const focused = part.contains(document.activeElement) ? document.activeElement.closest("[id]")?.id : null;
  const made = document.createElement("template");  // whose pictures are not loaded before they are wanted
  made.innerHTML = await answer.text();  // our own page, which escaped everything
  show(made.content);
  part.replaceChildren(made.content);
  if (focused) document.getElementById(focused)?.querySelector("button")?.focus();
}

async function turn() {
  if (!document.hidden || notifies()) {  // an alarm is wanted most when nobody looks
    try {
      for (const part of document.querySelectorAll("[data-part]"))
        // Images that move under a hand would be judged by mistake.
        if (!("still" in part.dataset) || !(part.matches(":hover") || part.contains(document.activeElement))) await renew(part);
      away(false);
      notify();
    } catch { away(true); }
  }
  setTimeout(turn, 5000);
}
if (document.querySelector("[data-part]")) setTimeout(turn, 5000);

// How pictures are shown: the same on all pages, until somebody changes it.

const $ = id => document.getElementById(id);
const PLAIN = { view: "clear", low: 20, cut: 0.5 };
const look = { ...PLAIN, ...JSON.parse(localStorage.getItem("cryoray-look") || "{}") };
const plain = () => Object.keys(PLAIN).every(name => look[name] === PLAIN[name]);
function pictured(path, side, view = look.view) {
  return `${path}?${new URLSearchParams({ view, side, low: look.low, cut: look.cut })}`;
}
function show(root = document) {
  const put = (image, address) => { if (image.getAttribute("src") !== address) image.src = address; };
  for (const image of root.querySelectorAll("img[data-picture]"))
    put(image, plain() ? image.dataset.picture : pictured(image.dataset.picture, 128));
  for (const image of root.querySelectorAll("img[data-micrograph]"))
    put(image, `${image.dataset.micrograph}?side=1024${plain() ? "" : `&low=${look.low}&cut=${look.cut}`}`);
}
function values() {
  $("low-value").textContent = look.low ? `${look.low}\u00a0Å` : "off";
  $("cut-value").textContent = `${look.cut}\u00a0%`;
}
let waiting = 0;
function change() {
  Object.assign(look, { view: $("view").value, low: Number($("low").value), cut: Number($("cut").value) });
  localStorage.setItem("cryoray-look", JSON.stringify(look));
  values();
  clearTimeout(waiting);  // while a slider is dragged, not every value is drawn
  waiting = setTimeout(() => { show(); enlarge(); }, 120);
}
if ($("low")) {
  document.querySelector("[data-tools]").hidden = false;
  for (const name of Object.keys(PLAIN)) {
    $(name).value = look[name];
    $(name).addEventListener("input", change);
  }
  values();
  show();
}

let looked = null;
function enlarge(tile = looked) {
  looked = tile;
  if (!tile?.isConnected || $("large").hidden) return;
  const path = tile.querySelector("[data-picture]").dataset.picture;
  for (const view of ["clear", "network", "file"]) {
    const image = $(`large-${view}`);
    image.parentElement.hidden = false;
    image.src = pictured(path, view === "clear" ? 320 : 128, view);
  }
  const words = selector => tile.querySelector(selector)?.textContent;
  const votes = [...tile.querySelectorAll(".score i")].map(one => one.title);
  const score = words(".score b") && `score ${words(".score b")}`;
  $("large-facts").textContent = [tile.querySelector(".picture:enabled")?.title, words(".about"), score, ...votes, words("em")].filter(Boolean).join(" · ");
}
function toggleLarge() {
  $("large").hidden = !$("large").hidden;
  $("enlarge").setAttribute("aria-pressed", String(!$("large").hidden));
  enlarge(looked?.isConnected ? looked : document.querySelector(".tile"));
}
function point(tile) {  // its pick, where its micrograph is shown
  for (const one of document.querySelectorAll(".picks .looked")) one.classList.remove("looked");
  document.querySelector(`#picks [data-row="${tile.dataset.row}"]`)?.classList.add("looked");
}
function togglePicks() {
  const button = document.querySelector("[data-toggle]"), picks = $("picks");
  picks.classList.toggle("hidden");
  button.setAttribute("aria-pressed", String(picks.classList.contains("hidden")));
}
if ($("large")) {
  $("enlarge").addEventListener("click", toggleLarge);
  $("large-close").addEventListener("click", toggleLarge);
  for (const image of document.querySelectorAll("#large img"))  // it may not be known how the networks saw it
    image.addEventListener("error", () => { image.parentElement.hidden = true; });
  for (const kind of ["pointerover", "focusin"])
    document.addEventListener(kind, event => {
      const tile = event.target.closest?.(".tile");
      if (tile && tile !== looked) { enlarge(tile); point(tile); }
    });
}
const toggle = document.querySelector("[data-toggle]");
if (toggle) { toggle.hidden = false; toggle.addEventListener("click", togglePicks); }

// Alarms, for whoever allowed the browser to say so.

const bell = "Notification" in window && window.isSecureContext ? document.querySelector("[data-notify]") : null;
const notifies = () => Boolean(bell) && Notification.permission === "granted" && localStorage.getItem("cryoray-notify") === "on";
const alarmed = () => [...document.querySelectorAll("[data-alarm]")];
const seenKey = () => `cryoray-alarm-${bell.dataset.notify}`;
function notify() {
  if (!notifies()) return;
  const seen = localStorage.getItem(seenKey()), all = alarmed();  // the latest first
  const at = all.findIndex(one => one.dataset.alarm === seen);
  for (const one of (at < 0 ? all : all.slice(0, at)).reverse())
    new Notification(`${bell.dataset.notify}: drift`, { body: one.querySelector("span").textContent, tag: one.dataset.alarm });
  if (all.length) localStorage.setItem(seenKey(), all[0].dataset.alarm);
}
function bellSays() {
  const on = notifies();
  $("notify").textContent = on ? "Notify me no more" : "Notify me of alarms";
  $("notify-text").textContent = on ? "This browser tells of new alarms as long as the page is open in a tab."
    : Notification.permission === "denied" ? "The browser's settings forbid this page to notify you." : "";
  $("notify").disabled = Notification.permission === "denied";
}
if (bell) {
  bell.hidden = false;
  bellSays();
  $("notify").addEventListener("click", async () => {
    if (notifies()) localStorage.setItem("cryoray-notify", "off");
    else if (await Notification.requestPermission() === "granted") {
      localStorage.setItem("cryoray-notify", "on");
      localStorage.setItem(seenKey(), alarmed()[0]?.dataset.alarm || "");  // those are seen already
    }
    bellSays();
  });
}

function tiles() { return [...document.querySelectorAll("form.tile")]; }
function current() { return document.activeElement?.closest("form.tile") || document.querySelector("form.tile.current"); }
function go(tile) {
  document.querySelectorAll(".current").forEach(one => one.classList.remove("current"));
  if (!tile) return;
  tile.classList.add("current");
  (tile.querySelector(".picture:enabled") || tile.querySelector("button:enabled")).focus();
}

async function post(action, fields) {
  const answer = await fetch(action, { method: "POST", body: fields, headers: { Accept: "application/json", "X-CSRF": csrf } });
  if (!answer.ok) throw new Error((await answer.json()).error);
  away(false);
}

function complain(error) {
  if (error instanceof TypeError) { away(true); return; }  // nothing was answered
  const main = document.getElementById("main");
  let sign = document.getElementById("complaint");
  if (!sign) {
    sign = document.createElement("p");
    sign.id = "complaint";
    sign.className = "problem";
    sign.setAttribute("role", "alert");
    main.prepend(sign);
  }
  sign.textContent = error.message;
}

// What was said last is kept over reloads, so that a wrong key can be taken back.
const PAST = "cryoray-said";
const past = () => JSON.parse(sessionStorage.getItem(PAST) || "[]");
const keepPast = list => { sessionStorage.setItem(PAST, JSON.stringify(list.slice(-50))); showUndo(); };
const mine = one => one.page === location.pathname;
function showUndo() {
  const button = document.querySelector("[data-undo]");
  if (button) button.hidden = !past().some(mine);
}

function count(by) {
  const bar = document.querySelector("progress"), text = document.querySelector("[data-done]");
  if (bar) bar.value += by;
  if (text) {
    text.dataset.done = Number(text.dataset.done) + by;
    text.textContent = Number(text.dataset.done).toLocaleString("en-US");
  }
}

async function undo() {
  const list = past(), at = list.findLastIndex(mine);
  if (at < 0) return;
  const [one] = list.splice(at, 1);
  try {
    await post(one.action, new URLSearchParams({ ...one.fields, say: one.before }));
    keepPast(list);
    location.reload();
  } catch (error) {
    if (!(error instanceof TypeError)) keepPast(list);
    complain(error);
  }
}

async function say(tile, what) {
  tile.classList.add("sending");
  const fields = Object.fromEntries(new FormData(tile));
  const pressed = tile.querySelector('.choice [aria-pressed="true"]');
  try {
    await post(tile.action, new URLSearchParams({ ...fields, say: what }));
    const { csrf: _, ...names } = fields;
    keepPast([...past(), { page: location.pathname, action: tile.action, fields: names, before: pressed ? pressed.value : "none" }]);
    const queue = tile.closest("[data-queue]"), part = tile.closest("[data-part]");
    if (part) await renew(part);
    else if (!queue) location.reload();
    else {
      const next = tile.nextElementSibling || tile.previousElementSibling;
      tile.remove();
      count(1);
      if (queue.querySelector("form.tile")) go(next);
      else location.href = queue.dataset.next || location.pathname;
    }
    const live = document.getElementById("live");
    if (live) await renew(live);
  } catch (error) {
    tile.classList.remove("sending");
    complain(error);
  }
}

document.addEventListener("submit", event => {
  const tile = event.target.closest("form.tile");
  if (!tile) return;
  event.preventDefault();
  say(tile, event.submitter.value);
});

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
  if (event.key === "v" && $("large")) { event.preventDefault(); toggleLarge(); return; }
  if (event.key === "Escape" && $("large") && !$("large").hidden) { toggleLarge(); return; }
  if (event.key === "h" && document.querySelector("[data-toggle]")) { togglePicks(); return; }
  if (event.key === "u" && !document.querySelector("[data-part]")) { event.preventDefault(); undo(); return; }
  const all = tiles(), at = all.indexOf(current());
  const says = { k: "keep", d: "discard", u: "none" }[event.key];
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 0, ArrowUp: 0 }[event.key];
  if (says && at >= 0 && !(says === "none" && !all[at].querySelector('[value="none"]'))) { event.preventDefault(); say(all[at], says); }
  else if (steps !== undefined && all.length) {
    event.preventDefault();
    if (at < 0) { go(all[0]); return; }
    let to = at + steps;
    if (!steps) {  // the tile above or below
      const box = all[at].getBoundingClientRect(), down = event.key === "ArrowDown";
      const rows = all.map((one, i) => [i, one.getBoundingClientRect()])
        .filter(([, b]) => down ? b.top > box.bottom - 2 : b.bottom < box.top + 2)
        .map(([i, b]) => [Math.abs(b.top - box.top) * 4 + Math.abs(b.left - box.left), i]);
      to = rows.length ? rows.sort((a, b) => a[0] - b[0])[0][1] : at;
    }
    go(all[Math.max(0, Math.min(all.length - 1, to))]);
  }
});
document.querySelector("[data-undo]")?.addEventListener("click", undo);
showUndo();
const queued = document.querySelector("[data-queue] form.tile");
if (queued) go(queued);
