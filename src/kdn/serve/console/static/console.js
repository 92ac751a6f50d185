// The console of a kdn server. Plain scripts and no build step: what is read here is what runs.
"use strict";

const byId = (id) => document.getElementById(id);
const ORIGINS = [["exact", "exact"], ["lossy", "lossy"], ["blended", "blended"], ["shared", "shared"], ["recomputed", "computed"]];
const PIECES = [["exact", "stored, exact"], ["lossy", "stored, with loss"], ["shared", "a sibling's, some perhaps computed again"],
  ["moved", "stored elsewhere, some computed again"], ["computed", "computed now"]];
const TIMES = [["queue", "waiting"], ["load", "loading (while computing)"], ["prefill", "prefill"], ["decode", "decoding"]];
const PAGE = 100;
const state = { overview: null, requests: [], predicted: {}, whys: {}, texts: [], total: 0, chosen: new Set(), timer: 0 };

// --- asking the server ---------------------------------------------------------------------

function headers(useApiKey) {
  const admin = sessionStorage.getItem("admin") || "";
  const key = useApiKey ? sessionStorage.getItem("api") || admin : admin || sessionStorage.getItem("api");
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

async function ask(path, { body, useApiKey = false, plain = false } = {}) {
  const answer = await fetch(path, {
    method: body === undefined ? "GET" : "POST",
    headers: headers(useApiKey),
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const text = await answer.text();
  if (!answer.ok) {
    let said = text;
    try { said = JSON.parse(text).error.message; } catch { /* not JSON: told as it is */ }
    const failure = new Error(said || `the server answered ${answer.status}`);
    failure.status = answer.status;
    throw failure;
  }
  return plain ? text : JSON.parse(text);
}

function tell(text, bad = false) {
  const notice = byId("notice");
  notice.hidden = !text;
  notice.textContent = text;
  notice.classList.toggle("bad", bad);
}

function failed(error) {
  if (error.status === 401 && !byId("key-dialog").open) openKeys();
  tell(error.message, true);
}

// --- building the page ---------------------------------------------------------------------

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function legend(id, kinds) {
  byId(id).replaceChildren(...kinds.map(([kind, name]) => make("span", {}, make("i", { className: kind }), name)));
}

function table(id, columns, rows, empty) {
  const head = make("tr", {}, ...columns.map(([name, number]) => make("th", { className: number ? "n" : "", scope: "col" }, name)));
  const body = rows.map((row) => make("tr", {}, ...row.map((cell, at) => {
    const td = make("td", { className: columns[at][1] ? "n" : columns[at][2] || "" });
    td.append(cell);
    return td;
  })));
  if (!rows.length) body.push(make("tr", {}, make("td", { colSpan: columns.length, className: "quiet" }, empty)));
  byId(id).replaceChildren(make("thead", {}, head), make("tbody", {}, ...body));
}

const count = (value) => Math.round(value).toLocaleString("en");
const share = (part, whole) => (whole ? `${(100 * part / whole).toFixed(1)} %` : "–");
function size(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (bytes >= 1000 && at < units.length - 1) { bytes /= 1000; at += 1; }
  return `${bytes >= 100 || at === 0 ? Math.round(bytes) : bytes.toPrecision(3)} ${units[at]}`;
}
function span(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms > 0 && ms < 0.1) return `${Math.round(1000 * ms)} µs`;
  if (ms < 1000) return `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
  const s = ms / 1000;
  if (s < 120) return `${s.toPrecision(3)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  return s < 172800 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} d`;
}
const money = (usd) => {
  if (usd === 0 || usd >= 0.01) return `$${usd.toFixed(usd ? 2 : 0)}`;
  return usd < 1e-4 ? "< $0.0001" : `$${usd.toFixed(1 - Math.floor(Math.log10(usd)))}`;
};

// --- overview ------------------------------------------------------------------------------

const ended = () => state.requests.filter((one) => one.state === "ended");
const sum = (rows, name) => rows.reduce((total, one) => total + one[name], 0);

function showOverview() {
  const found = state.overview;
  if (!found) return;
  byId("model").textContent = [found.model, ...found.adapters].join(" + ");
  const rows = ended();
  const prompt = sum(rows, "prompt_tokens");
  const reused = prompt - sum(rows, "recomputed");
  const firsts = rows.map((one) => one.ttft_ms).sort((a, b) => a - b);
  const held = found.tiers.reduce((most, tier) => Math.max(most, tier.tokens), 0);
  const figures = [
    [share(reused, prompt), "of prompt tokens reused"], [count(rows.length), "requests remembered"],
    [span(firsts[Math.floor(firsts.length / 2)]), "median time to first token"], [count(held), "tokens stored"],
    [money(found.money.saved_usd), "saved by what is stored"], [money(found.money.spent_usd), "spent on storing it"],
  ];
  byId("figures").replaceChildren(...figures.map(([value, name]) => make("div", { className: "figure" }, make("b", {}, value), make("span", {}, name))));
  drawOrigins(rows);
  drawFirsts(rows);
  drawPredicted(rows);
  table("tiers",
    [["tier"], ["blocks", 1], ["tokens", 1], ["size", 1], ["cap", 1], ["tokens supplied", 1], ["hit rate", 1], ["bandwidth", 1], ["evicted", 1], ["errors", 1], ["state"]],
    found.tiers.map((tier) => [tier.name, count(tier.blocks), count(tier.tokens), size(tier.size_bytes), size(tier.capacity_bytes),
      count(tier.supplied_tokens), share(tier.supplied_tokens, prompt), tier.name === "memory" ? "not copied" : tier.bytes_per_s ? `${size(tier.bytes_per_s)}/s` : "not read yet",
      count(tier.evicted), count(tier.errors), tier.is_open ? "in use" : "circuit open after failures"]), "no tiers");
  table("guard", [["collection"], ["answers compared", 1], ["same first token", 1], ["mean KL", 1], ["recomputed", 1]],
    found.guard.map((one) => [one.collection, count(one.samples), count(one.agreed), Number(one.mean_kl).toFixed(4), share(one.ratio, 1)]),
    "no blended answer was compared yet");
  const engine = found.engine;
  table("engine", [["what"], ["now", 1]], [
    ["requests waiting", count(engine.waiting)], ["requests in prefill", count(engine.prefilling)], ["requests decoding", count(engine.decoding)],
    ["KV memory in use", `${size(engine.kv_total_bytes - engine.kv_free_bytes)} of ${size(engine.kv_total_bytes)}`],
    ["lookups", count(found.counts.lookups)], ["blocks opened", count(found.counts.hits)], ["blocks missed", count(found.counts.misses)],
    ["damaged blocks met", count(found.counts.corrupt)], ["time model", found.time_model.source === "fit" ? "measured here" : "counted, not measured"],
    ["running for", span(1000 * found.uptime_s)],
  ], "");
}

function chart(id, rows, draw) {
  const box = byId(id);
  if (!rows.length) { box.replaceChildren(make("p", {}, "No request has ended yet.")); return; }
  box.replaceChildren(draw());
}

function drawOrigins(rows) {
  chart("chart-origins", rows, () => {
    const width = 960, height = 150, left = 52, bottom = 20;
    const bins = Math.min(48, rows.length), from = rows[0].created, to = rows[rows.length - 1].created;
    const sums = Array.from({ length: bins }, () => Object.fromEntries(ORIGINS.map(([kind]) => [kind, 0])));
    for (const one of rows) {
      const at = to > from ? Math.min(bins - 1, Math.floor(bins * (one.created - from) / (to - from))) : bins - 1;
      for (const [kind] of ORIGINS) sums[at][kind] += one[kind];
    }
    const most = Math.max(1, ...sums.map((bin) => ORIGINS.reduce((total, [kind]) => total + bin[kind], 0)));
    const parts = [svg("text", { x: 4, y: 12 }, count(most)), svg("text", { x: 4, y: height - bottom }, "0"),
      svg("line", { x1: left, x2: width, y1: height - bottom, y2: height - bottom, class: "grid" }),
      svg("text", { x: left, y: height - 5 }, new Date(1000 * from).toLocaleTimeString()),
      svg("text", { x: width, y: height - 5, "text-anchor": "end" }, new Date(1000 * to).toLocaleTimeString())];
    const step = (width - left) / bins;
    sums.forEach((bin, at) => {
      let y = height - bottom;
      for (const [kind, name] of ORIGINS) {
        const tall = (height - bottom - 6) * bin[kind] / most;
        if (!tall) continue;
        y -= tall;
        parts.push(svg("rect", { x: left + at * step + 1, y, width: Math.max(step - 2, 1), height: tall, class: kind },
          svg("title", {}, `${count(bin[kind])} tokens ${name}`)));
      }
    });
    return svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Prompt tokens over time by how they were obtained" }, ...parts);
  });
}

function logScale(values, low, high) {
  const known = values.filter((value) => value > 0);
  const from = Math.floor(Math.log10(Math.min(...known, 1e9))), to = Math.max(from + 1, Math.ceil(Math.log10(Math.max(...known, 1e-9))));
  const at = (value) => low + (high - low) * (Math.log10(Math.max(value, 10 ** from)) - from) / (to - from);
  return { at, marks: Array.from({ length: to - from + 1 }, (_, i) => 10 ** (from + i)) };
}

function drawFirsts(rows) {
  chart("chart-ttft", rows, () => {
    const width = 460, height = 190, left = 58, bottom = 18;
    const y = logScale(rows.map((one) => one.ttft_ms), height - bottom, 10);
    const step = (width - left - 12) / Math.max(rows.length - 1, 1);
    const parts = y.marks.flatMap((mark) => [svg("line", { x1: left, x2: width, y1: y.at(mark), y2: y.at(mark), class: "grid" }),
      svg("text", { x: left - 6, y: y.at(mark) + 4, "text-anchor": "end" }, span(mark))]);
    rows.forEach((one, at) => parts.push(svg("circle", { cx: left + 6 + at * step, cy: y.at(one.ttft_ms), r: 3, class: "dot" },
      svg("title", {}, `${span(one.ttft_ms)}, ${span(one.queue_ms)} of it waiting; ${share(one.prompt_tokens - one.recomputed, one.prompt_tokens)} reused`))));
    parts.push(svg("text", { x: left, y: height - 2 }, "oldest"), svg("text", { x: width, y: height - 2, "text-anchor": "end" }, "newest"));
    return svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Time to first token of each request, on a logarithmic scale" }, ...parts);
  });
}

function drawPredicted(rows) {
  const pairs = rows.filter((one) => state.predicted[one.id] > 0 && one.ttft_ms > one.queue_ms)
    .map((one) => [state.predicted[one.id], one.ttft_ms - one.queue_ms]);
  chart("chart-jct", pairs, () => {
    const width = 460, height = 190, left = 58, bottom = 34, values = pairs.flat();
    const x = logScale(values, left + 10, width - 26), y = logScale(values, height - bottom, 10);
    const ends = [x.marks[0], x.marks[x.marks.length - 1]];
    const parts = y.marks.flatMap((mark) => [svg("line", { x1: left, x2: width - 14, y1: y.at(mark), y2: y.at(mark), class: "grid" }),
      svg("text", { x: left - 6, y: y.at(mark) + 4, "text-anchor": "end" }, span(mark)),
      svg("text", { x: x.at(mark), y: height - bottom + 14, "text-anchor": "middle" }, span(mark))]);
    parts.push(svg("line", { x1: x.at(ends[0]), x2: x.at(ends[1]), y1: y.at(ends[0]), y2: y.at(ends[1]), class: "even" }));
    for (const [predicted, real] of pairs) {
      parts.push(svg("circle", { cx: x.at(predicted), cy: y.at(real), r: 3, class: "dot" }, svg("title", {}, `predicted ${span(predicted)}, took ${span(real)}`)));
    }
    parts.push(svg("text", { x: (left + width) / 2, y: height - 3, "text-anchor": "middle" }, "predicted →   (upwards: real; dashed: equal)"));
    return svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Predicted against real prefill times" }, ...parts);
  });
}

// --- requests ------------------------------------------------------------------------------

function times(one) {
  const first = Math.max(one.ttft_ms - one.queue_ms, 0), load = Math.min(one.load_ms, first);
  return { queue: one.queue_ms, load, prefill: first - load, decode: Math.max(one.total_ms - one.ttft_ms, 0) };
}

function showRequests() {
  const list = byId("requests");
  const newest = state.requests.slice(-60).reverse();
  if (!newest.length) { list.replaceChildren(make("li", { className: "quiet" }, "No request has come yet. Ask something in the playground.")); return; }
  const longest = Math.max(1, ...newest.map((one) => one.total_ms));
  list.replaceChildren(...newest.map((one) => requestRow(one, longest)));
  for (const one of newest.slice(0, 20)) if (one.state === "ended") fetchWhy(one.id);
}

function requestRow(one, longest) {
  const parts = times(one);
  const track = make("div", { className: "track", role: "img", ariaLabel: TIMES.map(([kind, name]) => `${name} ${span(parts[kind])}`).join(", ") });
  for (const [kind, name] of TIMES) {
    const piece = make("span", { className: kind, title: `${name}: ${span(parts[kind])}` });
    piece.style.width = `${100 * parts[kind] / longest}%`;
    track.append(piece);
  }
  const why = make("p", { className: "why", id: `why-${one.id}` });
  const row = make("li", {}, make("div", { className: "line" },
    make("time", { dateTime: new Date(1000 * one.created).toISOString() }, new Date(1000 * one.created).toLocaleTimeString()),
    track, make("span", {}, one.state === "ended" ? span(one.total_ms) : one.state),
    make("span", { className: "quiet" }, `${count(one.prompt_tokens - one.recomputed)} of ${count(one.prompt_tokens)} tokens reused`)), why);
  if (one.failure) why.textContent = one.failure;
  else if (state.whys[one.id]) fillWhy(why, state.whys[one.id]);
  else if (one.state === "ended") why.append(make("button", { type: "button", className: "plain", onclick: () => fetchWhy(one.id) }, "Why?"));
  return row;
}

async function fetchWhy(id) {
  if (state.whys[id]) return;
  try {
    const found = await ask(`/v1/kdn/requests/${encodeURIComponent(id)}`);
    if (!found.why) return;
    state.whys[id] = found.why;
    const place = byId(`why-${id}`);
    if (place) fillWhy(place, found.why);
  } catch (error) { if (error.status !== 404) failed(error); }
}

function fillWhy(place, why) {
  const texts = why.text ? [make("br"), "here ", make("code", {}, clip(why.before, -24) + "▸" + clip(why.text, 40))] : [];
  if (why.stored_text) texts.push(" stored ", make("code", {}, "▸" + clip(why.stored_text, 40)));
  place.replaceChildren(`${why.sentence} `, make("b", {}, why.reason), ...texts);
}
const clip = (text, most) => (most < 0 ? text.slice(most) : text.slice(0, most)).replaceAll("\n", "⏎");

// --- stored --------------------------------------------------------------------------------

async function loadTexts(more = false) {
  const offset = more ? state.texts.length : 0;
  const query = new URLSearchParams({ q: byId("find").value, sort: byId("sort").value, offset, limit: PAGE });
  const found = await ask(`/v1/kdn/console/texts?${query}`);
  state.texts = more ? state.texts.concat(found.rows) : found.rows;
  state.total = found.total;
  const known = new Set(state.texts.map((row) => row.id));
  for (const id of state.chosen) if (!known.has(id)) state.chosen.delete(id);
  showTexts();
}

function showTexts() {
  const all = make("input", { type: "checkbox", ariaLabel: "Choose all shown", onchange: (event) => {
    state.chosen = new Set(event.target.checked ? state.texts.map((row) => row.id) : []);
    showTexts();
  } });
  all.checked = state.texts.length > 0 && state.chosen.size === state.texts.length;
  table("texts", [[all], ["text", 0, "title"], ["model"], ["tenant"], ["tier"], ["tokens", 1], ["size", 1], ["age", 1], ["hits", 1], ["saved", 1], ["a hit saves", 1]],
    state.texts.map((row) => {
      const box = make("input", { type: "checkbox", checked: state.chosen.has(row.id), ariaLabel: `Choose ${row.title || row.id.slice(0, 12)}`,
        onchange: (event) => { event.target.checked ? state.chosen.add(row.id) : state.chosen.delete(row.id); showActs(); } });
      const name = row.title || (row.tenant && row.tenant !== "public" ? `(a tenant's text, ${row.id.slice(0, 12)})` : `(nothing to print, ${row.id.slice(0, 12)})`);
      return [box, (row.pinned ? "📌 " : "") + name.slice(0, 140) + (row.kind === "exact" ? "" : ` [${row.kind}]`), row.model, row.tenant || "–",
        Object.keys(row.tiers).join(" + "), count(row.tokens), size(row.size_bytes), row.age_s ? span(1000 * row.age_s) : "–", count(row.uses), money(row.saved_usd), money(row.value_usd)];
    }), "nothing is stored");
  byId("shown").textContent = `${count(state.texts.length)} of ${count(state.total)} texts`;
  byId("more").hidden = state.texts.length >= state.total;
  showActs();
}

// Where a move can take these: a tier that some of them are elsewhere than, and that does not end with the server.
function targets(chosen) {
  const lasting = (state.overview?.tiers || []).filter((tier) => tier.outlives_process).map((tier) => tier.name);
  return lasting.filter((name) => chosen.some((row) => Object.keys(row.tiers).some((held) => held !== name)));
}

function showActs() {
  const chosen = state.texts.filter((row) => state.chosen.has(row.id));
  byId("chosen").textContent = chosen.length ? `${count(chosen.length)} chosen, ${size(sum(chosen, "size_bytes"))}` : "nothing chosen";
  for (const button of byId("acts").querySelectorAll("button")) button.disabled = !chosen.length || (button.dataset.act === "move" && !targets(chosen).length);
}

const QUESTIONS = {
  pin: ["Pin", "No kdn on this folder will evict them until they are unpinned."], unpin: ["Unpin", "They may be evicted again when room is short."],
  warm: ["Warm", "They are read into the fastest tier now."], move: ["Move", "Each is written to that tier and dropped from the first other one that holds it."],
  clear: ["Clear", "They are dropped from every tier, and computed again when they are next needed. This cannot be undone."],
};

// Each question has an answer of its own: a dialog's close event comes late, and must not answer the next question.
let answerQuestion = null;

function settle(yes) {
  const answer = answerQuestion;
  answerQuestion = null;
  answer?.(yes);
}

function confirmed() {
  settle(false);
  return new Promise((resolve) => {
    answerQuestion = resolve;
    byId("ask").showModal();
  });
}

async function act(action) {
  const chosen = state.texts.filter((row) => state.chosen.has(row.id));
  const [title, text] = QUESTIONS[action];
  byId("ask-title").textContent = `${title} ${count(chosen.length)} ${chosen.length === 1 ? "text" : "texts"}?`;
  byId("ask-text").textContent = text;
  byId("ask-label").hidden = action !== "move";
  byId("ask-to").replaceChildren(...targets(chosen).map((name) => make("option", { value: name }, name)));
  byId("ask-yes").textContent = title;
  if (!await confirmed()) return;
  const done = await ask("/v1/kdn/console/act", { body: { action, ids: chosen.map((row) => row.id), to: action === "move" ? byId("ask-to").value : "" } });
  state.chosen.clear();
  await loadTexts();
  tell(`${title}: ${count(done.blocks)} blocks${done.missing ? `, ${count(done.missing)} were gone` : ""}.`);
}

async function save(path, name) {
  const text = await ask(path, { plain: true });
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  tell(`${name} was saved.`);
}

// --- playground ----------------------------------------------------------------------------

async function play(event) {
  event.preventDefault();
  const texts = byId("play-documents").value.split(/^---\s*$/m).map((text) => text.trim()).filter(Boolean);
  const button = byId("play").querySelector("button");
  button.disabled = true;
  tell("Asking …");
  try {
    const answer = await ask("/v1/chat/completions", { useApiKey: true, body: {
      messages: [{ role: "user", content: byId("play-question").value }],
      ...(texts.length ? { documents: texts.map((text, at) => ({ id: `document ${at + 1}`, text })) } : {}),
      max_tokens: Number(byId("play-tokens").value), temperature: 0, logprobs: true, top_logprobs: 3,
      kdn: { why: true, reuse: byId("play-reuse").value },
    } });
    const found = await ask(`/v1/kdn/requests/${answer.id}?prompt=true`, { useApiKey: true });
    showPlayed(answer, found);
    const usage = answer.usage;
    tell(`${count(usage.prompt_tokens_details.cached_tokens)} of ${count(usage.prompt_tokens)} prompt tokens were reused; first token after ${span(answer.kdn.ttft_ms)}.`);
  } finally { button.disabled = false; }
}

function showPlayed(answer, found) {
  byId("play-out").hidden = false;
  const tokens = answer.choices[0].logprobs.content;
  byId("play-answer").replaceChildren(...tokens.map((token) => {
    const p = Math.exp(token.logprob);
    const others = token.top_logprobs.map((one) => `${JSON.stringify(one.token)} ${(100 * Math.exp(one.logprob)).toFixed(1)} %`).join("\n");
    return make("button", { type: "button", className: p < 0.25 ? "p0" : p < 0.5 ? "p1" : p < 0.8 ? "p2" : "", title: `log-probability ${token.logprob.toFixed(3)}\n${others}` }, token.token);
  }));
  byId("play-prompt").replaceChildren(...(found.prompt || []).map((piece) =>
    make("span", { className: piece.origin, title: `${piece.role}: ${count(piece.tokens)} tokens ${new Map(PIECES).get(piece.origin)}` }, piece.text)));
  if (found.why) fillWhy(byId("play-why"), found.why);
}

// --- the whole -----------------------------------------------------------------------------

async function refresh() {
  clearTimeout(state.timer);
  try {
    const view = current();
    if (view !== "playground") {
      const [overview, requests, predicted] = await Promise.all([ask("/v1/kdn/console"), ask("/v1/kdn/requests?limit=1000"), ask("/v1/kdn/console/predicted")]);
      Object.assign(state, { overview, requests: requests.data.reverse(), predicted });
      byId("model").textContent = [overview.model, ...overview.adapters].join(" + ");
      if (byId("notice").classList.contains("bad")) tell("");
    }
    if (view === "overview") showOverview();
    if (view === "requests") showRequests();
    if (view === "stored" && !state.texts.length) await loadTexts();
  } catch (error) { failed(error); }
  if (!document.hidden) state.timer = setTimeout(refresh, 5000);
}

const VIEWS = ["overview", "requests", "stored", "playground"];
const current = () => (VIEWS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "overview");

function turn() {
  const view = current();
  for (const name of VIEWS) byId(`view-${name}`).hidden = name !== view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  document.title = `kdn console: ${view}`;
  scrollTo(0, 0);
  tell("");
  if (view === "stored") state.texts = [];
  refresh();
}

function openKeys() {
  byId("admin-key").value = sessionStorage.getItem("admin") || "";
  byId("api-key").value = sessionStorage.getItem("api") || "";
  byId("key-dialog").returnValue = "";
  byId("key-dialog").showModal();
}

function later(work, ms = 250) {
  let timer = 0;
  return () => { clearTimeout(timer); timer = setTimeout(() => work().catch(failed), ms); };
}

legend("legend-origins", ORIGINS);
legend("legend-times", TIMES);
legend("legend-prompt", PIECES);
byId("ask-yes").addEventListener("click", () => settle(true));
byId("ask").addEventListener("close", () => { if (!byId("ask").open) settle(false); });
byId("keys").addEventListener("click", openKeys);
byId("key-dialog").addEventListener("close", (event) => {
  if (event.target.returnValue !== "yes") return;
  sessionStorage.setItem("admin", byId("admin-key").value);
  sessionStorage.setItem("api", byId("api-key").value);
  tell("");
  refresh();
});
byId("find").addEventListener("input", later(loadTexts));
byId("sort").addEventListener("change", () => loadTexts().catch(failed));
byId("more").addEventListener("click", () => loadTexts(true).catch(failed));
byId("csv-texts").addEventListener("click", () => save("/v1/kdn/console/texts?form=csv", "texts.csv").catch(failed));
byId("csv-requests").addEventListener("click", () => save("/v1/kdn/console/requests.csv", "requests.csv").catch(failed));
byId("play").addEventListener("submit", (event) => play(event).catch(failed));
for (const button of byId("acts").querySelectorAll("button")) button.addEventListener("click", () => act(button.dataset.act).catch(failed));
addEventListener("hashchange", turn);
addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
turn();
