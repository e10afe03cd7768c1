// What saves reloading: live parts that renew themselves, clicks and keys that answer at once.
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
  part.innerHTML = await answer.text();  // our own page, which escaped everything
  if (focused) document.getElementById(focused)?.querySelector("button")?.focus();
}

async function turn() {
  if (!document.hidden) {
    try {
      for (const part of document.querySelectorAll("[data-part]"))
        // Images that move under a hand would be judged by mistake.
        if (part.id !== "gallery" || !(part.matches(":hover") || part.contains(document.activeElement))) await renew(part);
      away(false);
    } catch { away(true); }
  }
  setTimeout(turn, 5000);
}
if (document.querySelector("[data-part]")) setTimeout(turn, 5000);

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
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input")) return;
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
