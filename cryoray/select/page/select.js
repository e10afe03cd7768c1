// The page of `cryoray select`: columns are asked for once, pictures as they come into view, and every
// action is answered only when it is on disk. An image is named by its place, 0 to n - 1.
"use strict";

const $ = id => document.getElementById(id);
const csrf = document.querySelector("meta[name=csrf]").content;
const tab = Math.random().toString(36).slice(2);
const count = x => Math.round(x).toLocaleString("en-US");
const counted = (x, what) => `${count(x)} ${what}${Math.round(x) === 1 ? "" : what.endsWith("s") ? "es" : "s"}`;
const percent = (x, digits = 1) => `${(100 * x).toFixed(digits)}%`;
const GAP = 8, EDGE = 3, CAPTION = 47, PAD = 4, SIDES = [64, 96, 128, 192, 320];

let facts, n = 0, column = {}, names = {}, turned, revision = -1, change = [1, 0], line = 0, policy = "";
let weight, particlesKnown = false, resolutionKnown = false;
let listed = null, listedAs = "", asked = [];   // a list in an order of its own: similar ones, or to be labelled
let shown = new Uint32Array(0), place = new Map(), current = 0, anchor = null, marked = new Set();
let tile = 112, across = 1, rows = new Map();
const orders = {};

// What was sent and answered.

async function ask(path) {
  let answer;
  try { answer = await fetch(path); } catch { throw new Error("The program does not answer: start cryoray select again; what it answered before is kept."); }
  if (!answer.ok) throw new Error((await answer.json()).error);
  return answer;
}

async function send(path, fields) {
  let answer;
  try {
    answer = await fetch(path, { method: "POST", body: JSON.stringify({ tab, seen: revision, ...fields }),
      headers: { "Content-Type": "application/json", "X-CSRF": csrf } });
  } catch { throw new Error("This was not kept, the program does not answer: start cryoray select again."); }
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error);
  return told;
}

function say(text) { $("message").textContent = text; $("problem").textContent = ""; }
function complain(error) { $("problem").textContent = error.message; }

async function act(fields) {
  try {
    const delta = await send("/do", fields);
    await apply(delta);
    $("problem").textContent = "";
    return delta.told || true;
  } catch (error) { complain(error); draw(); return null; }
}

async function apply(delta) {
  revision = delta.rev;
  delta.rows.forEach((row, i) => { turned[row] = delta.values[i]; });
  const before = line;
  line = delta.line === null ? facts.threshold : delta.line;
  policy = delta.policy;
  asked = delta.asked;
  $("undo").disabled = !delta.undo;
  $("redo").disabled = !delta.redo;
  const adapted = delta.change[0] !== change[0] || delta.change[1] !== change[1];
  change = delta.change;
  if (adapted) await load();
  if (adapted || delta.rows.length) sums();
  if (adapted) histogram();
  if (adapted || delta.rows.length || line !== before) refresh(adapted || line !== before);
}

async function load() {
  const data = await (await ask("/columns")).arrayBuffer();
  const length = new DataView(data).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  const kinds = { f4: Float32Array, u1: Uint8Array, u4: Uint32Array, i4: Int32Array };
  let at = 4 + length;
  for (const [name, type] of head.columns) {
    column[name] = new kinds[type](data, at, head.n);
    at += Math.ceil(head.n * column[name].BYTES_PER_ELEMENT / 8) * 8;
  }
  n = head.n;
  names = { reason: head.reasons, micrograph: head.micrographs, verdict: head.verdicts };
  shorten();
  for (const key of Object.keys(orders)) delete orders[key];
  orders.score = column.order;
}

// What is kept, and what may be expected of it.

const level = () => Math.fround(line);
function keeps(i) { return turned[i] >= 0 ? turned[i] === 1 : column.score[i] >= level() && !column.held[i]; }

let open, sumWeight, sumGood, fixed;
function sums() {  // of the images that the line decides about, the worst first, added up
  open = new Float32Array(n); sumWeight = new Float64Array(n + 1); sumGood = new Float64Array(n + 1);
  fixed = { kept: 0, weight: 0, all: 0 };
  let m = 0;
  for (let k = n - 1; k >= 0; k--) {
    const i = column.order[k], w = weight[i];
    fixed.all += w;
    if (turned[i] < 0 && !column.held[i]) {
      open[m] = column.score[i];
      sumWeight[m + 1] = sumWeight[m] + w;
      sumGood[m + 1] = sumGood[m] + w * column.score[i];
      m++;
    } else if (turned[i] === 1) { fixed.kept++; fixed.weight += w; }
  }
  open = open.subarray(0, m);
}
function below(value) {  // how many of the open ones have a lower score
  let low = 0, high = open.length;
  while (low < high) { const mid = (low + high) >> 1; if (open[mid] < value) low = mid + 1; else high = mid; }
  return low;
}
function expected() {
  const m = open.length, k = below(level());
  const kept = fixed.weight + sumWeight[m] - sumWeight[k], good = fixed.weight + sumGood[m];
  const junk = sumWeight[m] - sumWeight[k] - (sumGood[m] - sumGood[k]);
  return { kept: fixed.kept + m - k, weight: kept, all: fixed.all, loss: good ? sumGood[k] / good : 0, junk: kept ? junk / kept : 0 };
}

// As many as the source has, those without a verdict too.
const total = () => n + facts.quarantined;
const things = () => (facts.kind === "particle" ? "particles" : "classes");
function summary() {
  const e = expected(), what = things();
  $("count").textContent = `${count(e.kept)} of ${count(total())} ${what} kept`;
  $("kept").replaceChildren(count(e.kept), small(` of ${count(total())} ${what}, ${percent(total() ? e.kept / total() : 0)}`));
  $("particles-box").hidden = !particlesKnown;
  $("particles").replaceChildren(count(e.weight), small(` of ${count(e.all)}, ${percent(e.all ? e.weight / e.all : 0)}`));
  $("loss").textContent = percent(e.loss);
  $("junk").textContent = percent(e.junk);
  $("line").value = line;
  $("line").setAttribute("aria-valuetext", `${line.toFixed(3)}: ${count(e.kept)} kept, ${percent(e.loss)} of the good lost`);
  if (document.activeElement !== $("exact")) $("exact").value = Number(line.toFixed(4));
  if (document.activeElement !== $("lose")) $("lose").value = (100 * e.loss).toFixed(1);
  if (document.activeElement !== $("share")) $("share").value = total() ? (100 * e.kept / total()).toFixed(1) : 0;
  $("low-side").setAttribute("width", 1000 * line);
  $("high-side").setAttribute("x", 1000 * line);
  $("high-side").setAttribute("width", Math.max(0, 1000 - 1000 * line));
  const preset = facts.presets.find(one => Math.abs(one.line - line) < 1e-6);
  for (const button of $("presets").children) button.setAttribute("aria-pressed", String(preset?.name === button.textContent));
  $("why").textContent = policy === "adapted" ? "Drawn anew by what you said of the pictures you were asked about." : preset ? `${preset.name}: ${preset.why}.` : "";
}
function small(text) { const one = document.createElement("small"); one.textContent = text; return one; }

function histogram() {
  const bins = 100, heights = new Float64Array(bins);
  for (let i = 0; i < n; i++) heights[Math.min(bins - 1, Math.floor(column.score[i] * bins))]++;
  const most = Math.sqrt(Math.max(1, ...heights));
  let path = "";
  heights.forEach((value, b) => { if (value) path += `M${10 * b + 1} 100V${(100 - 96 * Math.sqrt(value) / most).toFixed(1)}h8V100z`; });
  $("bars-low").setAttribute("d", path);
  $("bars-high").setAttribute("d", path);
}

// Which pictures are shown, and in which order.

function order(by) {
  if (by === "near") {  // changes with the line
    const far = column.score.map(s => Math.abs(s - line));
    return column.order.slice().sort((a, b) => far[a] - far[b]);
  }
  if (orders[by]) return orders[by];
  const late = x => (Number.isNaN(x) ? Infinity : x);
  const keys = { number: i => (column.number[i] < 0 ? Infinity : column.number[i]), particles: i => late(-column.particles[i]),
    resolution: i => late(column.resolution[i]), reason: i => column.reason[i], micrograph: i => column.micrograph[i], row: i => column.row[i] };
  if (by === "worst") return (orders.worst = column.order.slice().reverse());
  const key = Float64Array.from({ length: n }, (_, i) => keys[by](i));
  return (orders[by] = column.order.slice().sort((a, b) => key[a] - key[b] || 0));
}

function choose() {
  const from = listed || order($("sort").value), want = $("show").value, reason = $("reason").value;
  const review = names.verdict.indexOf("review");
  const all = listed || (want === "all" && !reason);
  const fits = i => (want === "all" || (want === "keep" ? keeps(i) : want === "discard" ? !keeps(i) : want === "review" ? column.verdict[i] === review : turned[i] >= 0))
    && (!reason || names.reason[column.reason[i]] === reason);
  shown = all ? Uint32Array.from(from) : from.filter(fits);
  place = new Map();
  $("shown").textContent = shown.length === n ? "" : `${count(shown.length)} of ${count(total())} ${things()} shown`;
  if (!shown.length) $("shown").textContent = `No ${things()} here.`;
}
function at(i) {
  if (!place.size) shown.forEach((one, k) => place.set(one, k));
  return place.get(i);
}

function refresh(resort) {
  summary();
  const want = $("show").value;
  // A picture that was turned stays where it is, so that nothing moves under a hand; a new line sorts anew.
  if (resort && !listed && (want === "keep" || want === "discard" || $("sort").value !== "row")) again();
  else draw();
  bar();
  enlarge();
}
function again() { choose(); current = Math.min(current, Math.max(0, shown.length - 1)); clear(); layout(); bar(); }

// The grid: only the rows in view are in the document.

function layout() {
  const width = $("grid").clientWidth - 2 * PAD;
  across = Math.max(1, Math.floor((width + GAP) / (tile + 2 * EDGE + GAP)));
  const lines = Math.ceil(shown.length / across);
  $("grid").style.height = `${lines * height() + PAD}px`;
  $("grid").setAttribute("aria-rowcount", lines);
  $("grid").setAttribute("aria-colcount", Math.min(across, shown.length));
  clear();
  draw();
}
const height = () => tile + 2 * EDGE + CAPTION + GAP;
function clear() {
  const focused = $("grid").contains(document.activeElement);
  for (const row of rows.values()) row.remove();
  rows.clear();
  if (focused) { draw(); focus(current, false); }
}

function draw() {
  const top = -$("grid").getBoundingClientRect().top, lines = Math.ceil(shown.length / across);
  const first = Math.max(0, Math.floor(top / height()) - 1), last = Math.min(lines - 1, Math.ceil((top + innerHeight) / height()) + 1);
  const mine = Math.floor(current / across);
  for (const [r, row] of rows) if ((r < first || r > last) && r !== mine) { row.remove(); rows.delete(r); }
  const wanted = [];
  for (let r = first; r <= last; r++) wanted.push(r);
  if (lines && !wanted.includes(mine)) wanted.push(mine);  // the tab key comes back to it
  for (const r of wanted) {
    if (!rows.has(r)) { rows.set(r, makeRow(r)); place_(r); }
    [...rows.get(r).children].forEach(dress);
  }
}
function place_(r) {  // rows stand in the document in their order, for whoever reads it aloud
  const next = [...rows.keys()].filter(one => one > r).sort((a, b) => a - b)[0];
  $("grid").insertBefore(rows.get(r), next === undefined ? null : rows.get(next));
}

function makeRow(r) {
  const row = document.createElement("div");
  row.className = "tiles";
  row.setAttribute("role", "row");
  row.setAttribute("aria-rowindex", r + 1);
  row.style.top = `${r * height()}px`;
  const some = [...shown.subarray(r * across, (r + 1) * across)];
  some.forEach((i, c) => {
    const cell = document.createElement("div");
    cell.setAttribute("role", "gridcell");
    cell.setAttribute("aria-colindex", c + 1);
    cell.dataset.at = r * across + c;
    cell.style.width = `${tile + 2 * EDGE}px`;
    const picture = document.createElement("div");
    picture.className = "pic";
    picture.style.width = picture.style.height = `${tile}px`;
    picture.style.backgroundSize = `${some.length * tile}px ${tile}px`;
    picture.style.backgroundPosition = `${-c * tile}px 0`;
    const caption = document.createElement("div");
    caption.className = "cap";
    caption.append(...[0, 1, 2].map(() => document.createElement("div")));
    cell.append(picture, caption);
    row.append(cell);
  });
  const url = strip(some, tile);
  // What is only flown over is not asked for.
  setTimeout(() => { if (row.isConnected) for (const cell of row.children) cell.firstChild.style.backgroundImage = `url("${url}")`; }, 40);
  return row;
}

function strip(some, px, view = $("view").value) {
  const side = SIDES.find(s => s >= px * devicePixelRatio) || SIDES.at(-1);
  return `/strip.png?places=${some.join(",")}&view=${view}&side=${side}&low=${$("low").value}&cut=${$("cut").value}`;
}

function about(i) {  // what the source says of an image; null where it says nothing
  const resolution = column.resolution[i], particles = column.particles[i], of = facts.kind === "particle" ? "CTF" : "resolution";
  const unknown = Number.isNaN(resolution);
  return { number: column.number[i] >= 0 ? `class ${column.number[i]}` : null,
    resolution: unknown ? null : `${resolution.toFixed(1)}\u00a0Å`,
    unknown: unknown && resolutionKnown ? `${of} unknown` : null,
    particles: Number.isNaN(particles) ? null : particles ? counted(particles, "particle") : "empty class, no particles" };
}
function words(i) {
  const { number, resolution, unknown, particles } = about(i);
  return [number, resolution && facts.kind === "particle" ? `CTF ${resolution}` : resolution || unknown, particles].filter(Boolean);
}
// Names of micrographs without what all of them have in common, as a tile has little room.
let shortened = [];
function shorten() {
  const all = names.micrograph, first = all[0] || "";
  let head = 0, tail = 0;
  while (all.length > 1 && head < first.length && all.every(one => one[head] === first[head])) head++;
  while (all.length > 1 && tail < first.length - head && all.every(one => one.length - tail > head && one.at(-1 - tail) === first.at(-1 - tail))) tail++;
  while (head && /\d/.test(first[head - 1])) head--;  // numbers stay whole
  while (tail && /\d/.test(first.at(-tail))) tail--;
  shortened = all.map(one => (one ? `${head ? "…" : ""}${one.slice(head, one.length - tail)}${tail ? "…" : ""}` : ""));
}
function reasonOf(i) { return column.reason[i] === 255 ? "" : names.reason[column.reason[i]]; }

function dress(cell) {
  const i = shown[Number(cell.dataset.at)], keep = keeps(i), mine = turned[i] >= 0;
  const review = names.verdict[column.verdict[i]] === "review" && !mine;
  const isMarked = marked.has(i), here = Number(cell.dataset.at) === current;
  cell.className = `tile ${keep ? "keep" : "discard"}${review ? " open" : ""}${isMarked ? " marked" : ""}`;
  cell.tabIndex = here ? 0 : -1;
  cell.setAttribute("aria-selected", String(isMarked));
  const verdict = keep ? "kept" : "discarded", score = column.score[i].toFixed(2);
  const [head, middle, foot] = cell.lastChild.children;
  const sign = document.createElement("i");
  sign.textContent = keep ? "✓" : "✕";
  sign.setAttribute("aria-hidden", "true");
  head.replaceChildren(sign, score);
  if (mine || review) { const by = document.createElement("u"); by.textContent = mine ? "you" : "review"; head.append(by); }
  const facts_ = words(i), micrograph = names.micrograph[column.micrograph[i]] || "", why = keep ? "" : reasonOf(i), { number, resolution, unknown, particles } = about(i);
  const lines = [[number, resolution].filter(Boolean).join(" · "), particles?.replace("empty class, ", ""), why, unknown, shortened[column.micrograph[i]]].filter(Boolean);
  middle.textContent = lines[0] || "";
  foot.textContent = lines[1] || "";
  cell.title = [...facts_, micrograph].filter(Boolean).join(", ");
  cell.setAttribute("aria-label", [verdict + (mine ? " by you" : review ? ", for review" : ""), `score ${score}`, ...facts_, why].filter(Boolean).join(", "));
}

// Moving, marking and turning.

function focus(k, scroll = true) {
  if (!shown.length) return;
  current = Math.max(0, Math.min(shown.length - 1, k));
  const r = Math.floor(current / across), top = $("grid").getBoundingClientRect().top + scrollY + r * height();
  const head = getComputedStyle(document.querySelector("header")).position === "sticky" ? document.querySelector("header").offsetHeight + 8 : 8;
  if (scroll && top < scrollY + head) scrollTo(0, top - head);
  else if (scroll && top + height() > scrollY + innerHeight) scrollTo(0, top + height() - innerHeight + 8);
  draw();
  rows.get(r)?.children[current - r * across]?.focus({ preventScroll: true });
  enlarge();
}

function mark(from, to) {
  marked = new Set(shown.subarray(Math.min(from, to), Math.max(from, to) + 1));
  marks();
  draw();
}
function unmark() { marked.clear(); anchor = null; marks(); draw(); }
function marks() {
  $("marks").hidden = marked.size < 2;
  $("marks-text").textContent = `${count(marked.size)} marked`;
}

async function turn(which, value) {
  const mine = [...which];
  for (const row of rows.values()) for (const cell of row.children) if (mine.length === 1 && shown[cell.dataset.at] === mine[0]) cell.classList.add("sending");
  return act({ what: "turn", rows: mine, value });
}
async function flip(i) {
  // Turned back to what the line says, it is the line's again.
  const to = keeps(i) ? 0 : 1, byLine = column.score[i] >= level() && !column.held[i] ? 1 : 0;
  return turn([i], to === byLine ? -1 : to);
}
async function decide(value) {
  if (marked.size > 1) {
    const some = [...marked];
    if (await turn(some, value)) { unmark(); say(`${count(some.length)} ${value ? "kept" : "discarded"}.`); }
    return;
  }
  if (!shown.length) return;
  const before = current;
  if (!await turn([shown[current]], value)) return;
  const work = listedAs === "teach" || $("show").value === "review";
  let next = before + 1;
  if (work) while (next < shown.length && turned[shown[next]] >= 0) next++;
  if (next < shown.length) focus(next);
  else focus(before);
}

function bar() {
  const teach = listedAs === "teach", review = !listed && $("show").value === "review";
  $("bar").hidden = !(listed || review);
  $("bar-progress").hidden = !(teach || review);
  $("adapt").hidden = !teach;
  if (!listed && !review) return;
  const done = shown.reduce((sum, i) => sum + (turned[i] >= 0), 0);
  $("bar-progress").max = Math.max(1, shown.length);
  $("bar-progress").value = done;
  if (teach) {
    $("bar-text").textContent = `The ${shown.length} pictures whose labels would tell most. Say of each what you see: k keeps, d discards. ${done} of ${shown.length} labelled.`;
    $("adapt").disabled = !done;
  } else if (review) $("bar-text").textContent = done === shown.length && done ? `All ${count(done)} for review are decided.` : `${count(done)} of ${count(shown.length)} for review decided. k keeps, d discards.`;
}

function list(places, as, text) {
  listed = places; listedAs = as;
  $("adapted").replaceChildren();
  $("bar-text").textContent = text;
  unmark();
  current = 0;
  again();
  if (text) $("bar-text").textContent = text;
  focus(0);
}
function back() {
  if (!listed && $("show").value !== "review") return;
  const i = shown[current];
  listed = null; listedAs = "";
  if ($("show").value === "review") $("show").value = "all";
  $("adapted").replaceChildren();
  choose();
  current = at(i) ?? 0;
  again();
  focus(current);
}

async function teach() {
  const told = await act({ what: "ask" });
  if (told) list(told.places, "teach", "");
}
async function adapt() {
  const told = await act({ what: "adapt" });
  if (!told) return;
  const table = document.createElement("table"), names_ = { line: "line", kept: "kept", right: `of your ${told.labels} labels on their side of the line`, loss: "good ones lost, expected" };
  const cell = (kind, text) => { const one = document.createElement(kind); one.textContent = text; return one; };
  const row = cells => { const one = document.createElement("tr"); one.append(...cells); return one; };
  table.append(row(["", "before", "after"].map(text => cell("th", text))));
  const show = { line: x => x.toFixed(3), kept: count, right: String, loss: percent };
  for (const [name, title] of Object.entries(names_)) table.append(row([cell("th", title), cell("td", show[name](told.before[name])), cell("td", show[name](told.after[name]))]));
  $("adapted").replaceChildren(table);
  say(`Scores adapted: ${counted(told.moved, "picture")} changed sides. The line went with the scores, so that it stands where it stood among the pictures, but for what your labels say; “lose at most” draws it by the new scores. Undo takes it back.`);
  $("back").focus();
}
async function similar() {
  if (!shown.length) return;
  try {
    say("Looking for similar ones…");
    const told = await (await ask(`/similar?place=${shown[current]}`)).json();
    say("");
    list(told.places, "similar", `Those that look most alike first, however they are turned, among the ${count(told.among)} nearest in score. Shift and a click or an arrow marks up to there; k keeps, d discards.`);
  } catch (error) { complain(error); }
}
function nextForReview() {
  const review = names.verdict.indexOf("review");
  let first = current + 1;
  if ($("show").value !== "review" || listed) { listed = null; listedAs = ""; $("show").value = "review"; current = first = 0; again(); }
  const from = [...shown.keys()], after = from.slice(first).concat(from.slice(0, first));
  const k = after.find(one => column.verdict[shown[one]] === review && turned[shown[one]] < 0);
  if (k === undefined) say(shown.length ? "Nothing under review is left to be decided." : "Nothing is under review.");
  else focus(k);
}
async function save() {
  $("save").disabled = true;
  try {
    const told = await send("/save", {});
    facts.saved = told;
    say(`Saved: ${count(told.kept)} kept, ${count(told.discarded)} discarded${told.particles === null ? "" : `, ${count(told.particles)} particles of the classes kept`}${told.quarantined ? `, ${count(told.quarantined)} without a verdict` : ""}.\n${told.folder}: ${told.files.join(", ")}`);
    scrollTo(0, 0);
  } catch (error) { complain(error); }
  $("save").disabled = false;
}

function enlarge(i = shown[current]) {
  if ($("large").hidden || i === undefined) return;
  for (const view of ["clear", "network", "file"]) $(`large-${view}`).style.backgroundImage = `url("${strip([i], view === "clear" ? 320 : 128, view)}")`;
  const cells = [["verdict", `${keeps(i) ? "kept" : "discarded"}${turned[i] >= 0 ? " by you" : names.verdict[column.verdict[i]] === "review" ? ", for review" : ""}`],
    ["score", column.score[i].toFixed(3)], ["facts", words(i).join(", ")], ["reason", reasonOf(i)], ["micrograph", names.micrograph[column.micrograph[i]]], ["row", count(column.row[i] + 1)]];
  $("large-facts").replaceChildren(...cells.filter(([, text]) => text).flatMap(([name, text]) => { const a = document.createElement("dt"), b = document.createElement("dd"); a.textContent = name; b.textContent = text; return [a, b]; }));
}
function toggleLarge() {
  $("large").hidden = !$("large").hidden;
  $("enlarge").setAttribute("aria-pressed", String(!$("large").hidden));
  enlarge();
}

// What hands do.

async function draws(value, by = "") {
  line = Math.max(0, Math.min(1.01, value));
  summary();
  await act({ what: "line", line, policy: by });
  refresh(true);
}

function wire() {
  $("line").addEventListener("input", () => { line = Number($("line").value); summary(); draw(); });
  $("line").addEventListener("change", () => draws(Number($("line").value)));
  $("exact").addEventListener("change", () => draws(Number($("exact").value)));
  $("share").addEventListener("change", () => {
    const k = Math.min(n, Math.round(total() * Math.max(0, Math.min(100, Number($("share").value))) / 100));
    draws(k ? column.score[column.order[k - 1]] : 1.01, `share=${$("share").value}`);
  });
  $("lose").addEventListener("change", () => {  // the highest line at which no more is expected to be lost
    const most = Math.max(0, Math.min(100, Number($("lose").value))) / 100, m = open.length, good = fixed.weight + sumGood[m];
    let k = 0;
    while (k < m && sumGood[k + 1] <= most * good) k++;
    draws(k < m ? open[k] : 1.01, `loss=${$("lose").value}`);
  });
  for (const preset of facts.presets) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = preset.name;
    button.title = preset.why;
    button.addEventListener("click", () => draws(preset.line, preset.name));
    $("presets").append(button);
  }
  for (const id of ["sort", "show", "reason"]) $(id).addEventListener("change", () => { listed = null; listedAs = ""; unmark(); current = 0; again(); });
  for (const id of ["low", "cut", "view"]) $(id).addEventListener("input", () => { values(); clear(); draw(); enlarge(); });
  $("size").addEventListener("input", () => { tile = Number($("size").value); layout(); });
  for (const [id, does] of Object.entries({ undo: () => act({ what: "undo" }), redo: () => act({ what: "redo" }), save, teach, adapt, back, similar, enlarge: toggleLarge,
    "large-close": toggleLarge, keys: () => $("help").showModal(), "help-close": () => $("help").close(), "marks-keep": () => decide(1), "marks-discard": () => decide(0), "marks-clear": unmark })) $(id).addEventListener("click", does);

  $("grid").addEventListener("click", async event => {
    const cell = event.target.closest(".tile");
    if (!cell) return;
    const k = Number(cell.dataset.at), from = anchor ?? current;
    current = k;
    if (event.shiftKey) { anchor = from; mark(from, k); focus(k, false); return; }
    unmark();
    focus(k, false);
    await flip(shown[k]);
  });
  $("grid").addEventListener("pointerover", event => { const cell = event.target.closest(".tile"); if (cell) enlarge(shown[cell.dataset.at]); });
  addEventListener("scroll", draw, { passive: true });
  addEventListener("resize", layout);
  document.addEventListener("keydown", key);
}
function values() {
  $("low-value").textContent = Number($("low").value) ? `${$("low").value}\u00a0Å` : "off";
  $("cut-value").textContent = `${$("cut").value}%`;
}

function key(event) {
  const command = event.ctrlKey || event.metaKey, typing = event.target.matches("input, select, textarea");
  if ($("help").open || event.altKey) return;
  const letter = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (command) {
    const does = { z: () => act({ what: event.shiftKey ? "redo" : "undo" }), y: () => act({ what: "redo" }), s: save, a: () => { if (shown.length) { mark(0, shown.length - 1); } } }[letter];
    if (!does || (typing && event.target.type === "number") || (letter === "a" && !$("grid").contains(event.target))) return;
    event.preventDefault();
    does();
    return;
  }
  if (typing) return;
  const page = Math.max(1, Math.floor(innerHeight / height()) - 1) * across;
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
  const inGrid = $("grid").contains(event.target);
  if (letter in steps && inGrid) {
    event.preventDefault();
    const to = Math.max(0, Math.min(shown.length - 1, current + steps[letter]));
    if (event.shiftKey) { anchor ??= current; mark(anchor, to); } else if (marked.size) unmark(); else anchor = null;
    focus(to);
    return;
  }
  const does = { k: () => decide(1), d: () => decide(0), x: () => shown.length && turn(marked.size > 1 ? marked : [shown[current]], -1),
    u: () => act({ what: "undo" }), n: nextForReview, s: similar, v: toggleLarge, t: teach, "?": () => $("help").showModal(),
    "[": () => draws(line - 0.01), "]": () => draws(line + 0.01),
    Escape: () => { if (marked.size) unmark(); else if (!$("large").hidden) toggleLarge(); else back(); } }[letter];
  const turnsIt = (letter === " " || letter === "Enter") && inGrid && event.target.matches(".tile");
  if (!does && !turnsIt) return;
  event.preventDefault();
  if (turnsIt) { if (marked.size > 1) turn(marked, keeps(shown[current]) ? 0 : 1).then(unmark); else flip(shown[current]); }
  else does();
}

function lost() {  // what has no verdict, and why
  const all = facts.lost.map(([name, why]) => { const one = document.createElement("li"); one.textContent = `${name}: ${why}`; return one; });
  $("lost").hidden = !facts.quarantined;
  $("lost-title").textContent = `${count(facts.quarantined)} of ${count(total())} ${things()} ${facts.quarantined === 1 ? "has" : "have"} no verdict`;
  if (facts.lost.length < facts.quarantined) all.push(Object.assign(document.createElement("li"), { textContent: `and ${count(facts.quarantined - facts.lost.length)} more: see quarantine.parquet` }));
  $("lost-list").replaceChildren(...all);
}

async function poll() {  // what other tabs did
  if (!document.hidden) {
    try {
      const delta = await (await ask(`/since?tab=${tab}&rev=${revision}`)).json();
      if (delta.rev !== revision) await apply(delta);
      else { $("undo").disabled = !delta.undo; $("redo").disabled = !delta.redo; }
    } catch (error) { complain(error); }
  }
  setTimeout(poll, 2000);
}

async function begin() {
  const [told] = await Promise.all([ask("/facts").then(answer => answer.json()), load()]);
  facts = told;
  turned = new Int8Array(n).fill(-1);
  particlesKnown = column.particles.some(x => !Number.isNaN(x));
  resolutionKnown = column.resolution.some(x => !Number.isNaN(x));
  weight = particlesKnown ? column.particles.map(x => (Number.isNaN(x) ? 0 : x)) : new Float32Array(n).fill(1);
  const delta = await (await ask(`/since?tab=${tab}&rev=-1`)).json();
  change = delta.change;  // the columns have it already
  line = facts.line;
  if (facts.kind === "particle") tile = 136;
  if (innerWidth < 500) tile = Math.floor(($("grid").clientWidth - 2 * PAD + GAP) / 3) - GAP - 2 * EDGE;
  $("size").value = tile;
  $("low").value = facts.low_pass;
  $("cut").value = facts.cut;
  values();
  for (const reason of names.reason) $("reason").append(new Option(reason, reason));
  $("reason-box").hidden = !names.reason.length;
  for (const option of [...$("sort").options]) {
    const known = { number: () => column.number.some(x => x >= 0), particles: () => particlesKnown, resolution: () => resolutionKnown, reason: () => names.reason.length, micrograph: () => names.micrograph.some(Boolean) }[option.value];
    if (known && !known()) option.remove();
  }
  $("about").textContent = `Verdicts: ${facts.folder}. Source: ${facts.source}. ${facts.judge ? `Judged by ${facts.judge}.` : "The ensemble that judged is not at hand, so Teach knows less."} Save writes ${facts.out}.`;
  lost();
  const narrow = matchMedia("(max-width: 700px)"), fold = () => { for (const one of document.querySelectorAll(".fold")) one.open = !narrow.matches; };
  narrow.addEventListener("change", fold);
  fold();
  wire();
  await apply(delta);
  sums();
  histogram();
  again();
  summary();
  if (delta.rev > 0) say(`Going on from before: ${counted(turned.reduce((sum, x) => sum + (x >= 0), 0), "picture")} decided by you.`);
  poll();
}
begin().catch(complain);
