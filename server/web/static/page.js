// The operator's page: listens to /api/events and keeps one card a camera up to date. What is not known is said, not guessed.

import { Charts, PERCENTILES, STREAMS } from "./charts.js";
import { Picture } from "./picture.js";

const OPEN_AT_FIRST = 4;
const MEAN_S = 10;
const NO_MATCH = { true: "no frame was due yet", false: "this camera sends no semantics", null: "not known whether semantics come" };
const ORDER = ["online", "degraded", "silent", "offline", "stopped", "unknown"];
const WORDS = { silent: "silent: online, but no video comes", unknown: "unknown: it has not said how it is" };
const cards = new Map();
const $ = (id) => document.getElementById(id);

const number = (value, digits = 0) => value == null ? "–" : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const rate = (value) => value == null ? "–" : number(value, value < 10 ? 2 : value < 100 ? 1 : 0);
const words = (key) => key.replaceAll("_", " ");

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text != null) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function value(target, text, unit) {
  target.replaceChildren(text, ...(unit && text !== "–" ? [" ", make("small", unit)] : []));
  target.classList.toggle("unknown", text === "–");
}

function rows(table, entries, empty) {
  table.replaceChildren(...entries.map(([name, content, className]) => {
    const row = make("tr", null, className);
    row.append(make("td", name), make("td", content));
    return row;
  }));
  if (!entries.length && empty) {
    const row = make("tr", null, "quiet");
    row.append(make("td", empty));
    table.append(row);
  }
}

function legend(target, names, latest, format) {
  target.replaceChildren(...names.map(([key, label]) => {
    const item = make("span");
    const swatch = make("i");
    swatch.style.background = `var(--${key})`;
    item.append(swatch, `${label} ${format(latest?.[key])}`);
    return item;
  }));
}

class Card {
  constructor(camera) {
    this.camera = camera;
    this.pictured = false;
    this.root = $("camera").content.firstElementChild.cloneNode(true);
    this.root.id = `camera-${camera}`;
    this.at = Object.fromEntries([...this.root.querySelectorAll("[data-as]")].map((node) => [node.dataset.as, node]));
    const [lossy, fused] = this.root.querySelectorAll("figure");
    this.lossy = new Picture(lossy, camera);
    this.fused = new Picture(fused, camera);
    this.charts = new Charts(this.at.rates, this.at.latencies);
    this.root.addEventListener("toggle", () => this.charts.draw());
    fetch(`/api/cameras/${encodeURIComponent(camera)}/history`)
      .then((answer) => answer.ok ? answer.json() : [])
      .then((points) => this.charts.seed(points))
      .catch((error) => console.warn("no history", camera, error));
  }

  picture(event) {
    if (!this.pictured) {
      this.pictured = true;
      this.root.open = document.querySelectorAll(".camera[open]").length < OPEN_AT_FIRST;
    }
    if (!this.root.open || document.hidden) return;
    this.at.seq.textContent = `frame ${number(event.seq)}`;
    this.lossy.show(event);
    if (event.fused) this.fused.show(event); else this.fused.clear();
  }

  update(view) {
    const point = { t: Date.now() / 1000, ...view.kbps, ...view.latency_ms };
    this.charts.add(point);
    const means = Object.fromEntries([...STREAMS.map(([name]) => name), "total"].map((name) => [name, this.charts.mean(name, MEAN_S)]));
    this.head(view, means);
    this.tiles(view, means);
    this.tables(view);
    legend(this.at.ratelegend, STREAMS, means, rate);
    legend(this.at.latencylegend, PERCENTILES, view.latency_ms, number);
  }

  head(view, means) {
    this.at.dot.className = `dot ${view.status}`;
    this.at.name.textContent = view.camera;
    this.at.word.textContent = WORDS[view.status] ?? view.status;
    this.at.word.className = `word ${view.status}`;
    const size = view.width ? `${view.width} × ${view.height}` : null;
    const facts = [size, view.fps && `${number(view.fps, view.fps % 1 ? 2 : 0)} frames/s`, view.profile && `profile ${view.profile}`, view.version];
    this.at.facts.textContent = facts.filter(Boolean).join(" · ");
    this.at.brief.textContent = [means.total != null && `${rate(means.total)} kbit/s`, view.match_rate != null && `${number(view.match_rate * 100, 1)} % matched`, view.latency_ms.p95 != null && `p95 ${number(view.latency_ms.p95)} ms`].filter(Boolean).join(" · ");
    this.at.actions.replaceChildren(...this.actions(view));
  }

  actions(view) {
    const latest = new Map();
    for (const action of view.actions) if (!latest.has(action.model)) latest.set(action.model, action);
    if (!latest.size) return [make("span", "no action recognised yet", "quiet")];
    return [...latest.values()].map((action) => {
      const chip = make("span", null, "chip");
      chip.append(make("b", words(action.label)), " ", make("span", `${number(action.score * 100)} %  ${action.model}, frames ${action.start_seq}–${action.end_seq}`));
      return chip;
    });
  }

  tiles(view, means) {
    value(this.at.total, rate(means.total), "kbit/s");
    const side = means.total ? `${number(100 * means.semantic / means.total, 1)} % semantics, ` : "";
    this.at.totalsub.textContent = means.total == null ? "no video yet" : `${side}mean of ${MEAN_S} s`;
    this.at.totalsub.title = view.kbps_source === "camera" ? "told by the camera, acknowledgements included" : "measured by the server";
    value(this.at.match, view.match_rate == null ? "–" : number(view.match_rate * 100, view.match_rate === 1 ? 0 : 2), "%");
    this.at.match.classList.toggle("warn", view.match_rate != null && view.match_rate < 1);
    const parts = ["matched", "late", "missing_semantics", "missing_video"].filter((key) => view.match[key]);
    this.at.matchsub.textContent = view.match_rate == null ? NO_MATCH[view.semantics] : parts.map((key) => `${number(view.match[key])} ${words(key)}`).join(", ");
    value(this.at.latency, number(view.latency_ms.p50), "ms p50");
    this.at.latencysub.textContent = `p95 ${number(view.latency_ms.p95)} ms, p99 ${number(view.latency_ms.p99)} ms`;
    value(this.at.tracks, view.picture ? number(view.tracks.length) : "–");
    this.at.trackssub.textContent = `${number(view.tracks_seen)} followed in this session`;
  }

  tables(view) {
    const { captured, committed, spooled, dropped, backfill } = view.ledger;
    const lost = Object.values(dropped).reduce((a, b) => a + b, 0);
    const known = captured != null && committed != null && spooled != null;
    rows(this.at.ledger, [["committed", number(committed)], ["spooled in the camera", number(spooled)], ["dropped", known ? number(lost) : "–"], ["captured", number(captured), "sum"], ...(backfill ? [["backfill still to come", number(backfill)]] : [])]);
    const balanced = known && captured === committed + spooled + lost;
    this.at.balance.textContent = !known ? "the camera has sent no ledger yet" : balanced ? "balanced: nothing is unaccounted for" : `out of balance by ${number(captured - committed - spooled - lost)}`;
    this.at.balance.classList.toggle("bad", known && !balanced);
    const reasons = [...Object.entries(dropped).map(([reason, count]) => [`camera: ${words(reason)}`, number(count)]),
      ...Object.entries(view.server.dropped).map(([reason, count]) => [`server: ${words(reason)}`, number(count)])];
    rows(this.at.dropped, reasons, "nothing");
    const engines = Object.entries(view.engine).map(([part, engine]) => [words(part), engine || "not in use"]);
    const strength = view.scene_strength == null ? [] : [["scene strength", `${number(100 * view.scene_strength)} %`]];
    const passed = view.server.passed ? [["good enough unfused", `${number(view.server.passed)} frames`]] : [];
    const memory = [["camera memory", view.rss_mb.camera == null ? "–" : `${number(view.rss_mb.camera)} MB`], ["server memory", view.rss_mb.server == null ? "–" : `${number(view.rss_mb.server)} MB`]];
    rows(this.at.engines, [["encoder", view.encoder ?? "–"], ...engines, ...strength, ...passed, ...memory]);
    this.at.degraded.replaceChildren(...(view.degraded.length ? view.degraded.map((reason) => make("li", reason)) : [make("li", view.status === "unknown" ? "not known" : "nothing", "quiet")]));
  }
}

function restarts(workers) {
  const count = workers.reduce((sum, worker) => sum + worker.restarts, 0);
  return count ? [["workers restarted", number(count)]] : [];
}

function fleet(views, health) {
  const counts = ORDER.map((status) => [status, views.filter((view) => view.status === status).length]).filter(([, count]) => count);
  $("fleet").replaceChildren(...counts.map(([status, count]) => {
    const item = make("li");
    item.append(make("span", null, `dot ${status}`), `${count} ${status}`);
    return item;
  }));
  const total = views.reduce((sum, view) => sum + (view.kbps.total ?? 0), 0);
  const facts = [["uplink", `${rate(total)} kbit/s`], ...Object.entries(health.parts), ...restarts(health.workers), ["memory", health.rss_mb == null ? "–" : `${number(health.rss_mb)} MB`]];
  $("server").replaceChildren(...facts.map(([name, answer]) => {
    const item = make("div");
    item.append(make("dt", name), make("dd", answer, name in health.parts && answer !== "ok" ? "bad" : ""));
    return item;
  }));
}

function update({ cameras, health }) {
  fleet(cameras, health);
  $("empty").hidden = cameras.length > 0;
  for (const view of cameras) {
    if (!cards.has(view.camera)) {
      const card = new Card(view.camera);
      cards.set(view.camera, card);
      $("cameras").append(card.root);
    }
    cards.get(view.camera).update(view);
  }
}

const events = new EventSource("/api/events");
events.addEventListener("cameras", (message) => update(JSON.parse(message.data)));
events.addEventListener("picture", (message) => {
  const event = JSON.parse(message.data);
  cards.get(event.camera)?.picture(event);
});
events.addEventListener("open", () => { $("banner").hidden = true; });
events.addEventListener("error", () => {
  $("banner").textContent = "No connection to the server: what stands here is old. Trying again.";
  $("banner").hidden = false;
});
