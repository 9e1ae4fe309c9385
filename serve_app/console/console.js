// The console: reads one stream of snapshots, draws them, and sends a change of the split.
// Everything from the router becomes text or a number, never markup.
"use strict";
(() => {
  const KEY = "quantile.key";
  const RETRY_MS = 2000;
  const BP = 10000;
  const $ = (id) => document.getElementById(id);
  let state = null;
  let isAdmin = false;
  let who = null;
  let chosen = null; // the model whose split is shown in the sliders
  let draft = null;  // { base, shares }: what the sliders say, and the split they began from
  let stream = null; // the AbortController of the stream at hand
  let isSending = false;
  const seen = { health: new Map(), splits: new Map(), rungs: new Map() };

  function el(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "text") made.textContent = value;
      else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  }
  function svg(name, attributes) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }
  const share = (bp) => `${(bp / 100).toFixed(bp % 100 ? 2 : 0)} %`;
  const percent = (x) => `${(100 * x).toFixed(1)} %`;
  const known = (value, say = String) => (value === null || value === undefined ? "–" : say(value));
  function time(s) {
    if (s === null || s === undefined) return "–";
    return s < 1 ? `${(1000 * s).toPrecision(3)} ms` : `${s.toPrecision(3)} s`;
  }
  function bytes(n) {
    if (n === null || n === undefined) return "–";
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let i = 0;
    while (n >= 1024 && i < units.length - 1) { n /= 1024; i += 1; }
    return `${i ? n.toPrecision(3) : n} ${units[i]}`;
  }
  function hue(target, variant) {
    const index = state ? Object.keys(state.variants).indexOf(variant) : 0;
    target.style.setProperty("--hue", `var(--v${Math.max(0, index) % 8})`);
    return target;
  }
  function announce(text) { $("announcement").textContent = text; }

  // Expected share of sessions that change their variant; as serve_app/console/moves.py.
  function movingShare(before, after) {
    const names = [...new Set([...Object.keys(before), ...Object.keys(after)])];
    let stays = 0;
    for (const name of names) {
      if (!before[name] || !after[name]) continue;
      let sum = 0;
      for (const other of names) {
        sum += Math.max((before[other] || 0) / before[name], (after[other] || 0) / after[name]);
      }
      stays += 1 / sum;
    }
    return Math.max(0, 1 - stays);
  }
  // One share is set; the others keep their ratios, so that no session moves between them.
  function withShare(shares, name, wanted) {
    const others = Object.keys(shares).filter((each) => each !== name);
    if (!others.length) return { ...shares };
    const rest = BP - wanted;
    const total = others.reduce((sum, each) => sum + shares[each], 0);
    const parts = others.map((each) => (total ? (rest * shares[each]) / total : rest / others.length));
    const result = { [name]: wanted };
    others.forEach((each, i) => { result[each] = Math.floor(parts[i]); });
    let left = rest - others.reduce((sum, each) => sum + result[each], 0);
    const order = others.map((each, i) => [parts[i] - Math.floor(parts[i]), each]).sort((a, b) => b[0] - a[0]);
    for (let i = 0; left > 0; i += 1, left -= 1) result[order[i % order.length][1]] += 1;
    return Object.fromEntries(Object.keys(shares).map((each) => [each, result[each]]));
  }
  const isSame = (a, b) => {
    const names = new Set([...Object.keys(a), ...Object.keys(b)]);
    return [...names].every((name) => (a[name] || 0) === (b[name] || 0));
  };

  function bar(label, parts) {
    const made = el("div", { class: "bar", role: "img", "aria-label": label });
    for (const part of parts) {
      const piece = hue(el("span"), part.variant);
      piece.style.flex = `0 0 ${Math.min(100, 100 * part.share)}%`;
      made.append(piece);
    }
    return made;
  }
  function legend(items) {
    const list = el("ul", { class: "legend" });
    for (const [variant, text] of items) {
      list.append(el("li", {}, hue(el("span", { class: "swatch", "aria-hidden": "true" }), variant), text));
    }
    return list;
  }

  function sparkline(name, latency) {
    const label = latency
      ? `${name}: P50 ${time(latency.ttft_s.p50)}, P95 ${time(latency.ttft_s.p95)}, P99 ${time(latency.ttft_s.p99)} of ${latency.n} streams in the last minute`
      : `${name}: no answers yet`;
    const drawn = hue(svg("svg", { class: "spark", viewBox: "0 0 150 40", role: "img", "aria-label": label }), name);
    if (!latency) return drawn;
    const all = Object.values(latency.steps).flat().filter((x) => x !== null);
    if (!all.length) return drawn;
    const least = 0.8 * Math.min(...all); // the figures beside it say how much: this says how it went
    const range = Math.max(...all) - least || 1;
    const n = latency.steps.p50.length;
    for (const [kind, values] of Object.entries(latency.steps)) {
      let run = [];
      const end = () => { // a gap ends a line; a lone point is a dot
        if (run.length > 1) drawn.append(svg("polyline", { class: kind, points: run.map((p) => p.join(",")).join(" ") }));
        else if (run.length) drawn.append(svg("circle", { class: kind, cx: run[0][0], cy: run[0][1], r: 1 }));
        run = [];
      };
      values.forEach((value, i) => {
        if (value === null) end();
        else run.push([(1 + (148 * i) / (n - 1)).toFixed(1), (38 - (36 * (value - least)) / range).toFixed(1)]);
      });
      end();
    }
    return drawn;
  }

  function drawFigures() {
    const router = state.router;
    const open = Object.values(router.breakers).filter((each) => each.state === "open").length;
    const figures = [["In flight", router.in_flight], ["Waiting", router.waiting], ["Breakers open", open],
      ["Retries left", Math.floor(router.retries_left)]];
    if (router.draining) figures.push(["This replica", "is draining"]);
    $("figures").replaceChildren(...figures.map(([name, value]) =>
      el("div", {}, el("dt", { text: name }), el("dd", { text: known(value) }))));
  }
  function drawVariants() {
    const rows = Object.entries(state.variants).map(([name, each]) => {
      const replicas = each.replicas ? `${each.replicas.running}/${known(each.replicas.target)}` : "–";
      const ttft = each.latency ? each.latency.ttft_s : {};
      const cells = [each.bits, bytes(each.weight_bytes), replicas, share(each.share_bp),
        time(ttft.p50), time(ttft.p95), time(ttft.p99)];
      return el("tr", {},
        el("th", { scope: "row" }, hue(el("span", { class: "swatch", "aria-hidden": "true" }), name), name),
        el("td", { class: "health", "data-health": each.health, text: each.health }),
        el("td", { text: known(each.scheme || each.method) }),
        ...cells.map((text) => el("td", { class: "n", text: known(text) })),
        el("td", {}, sparkline(name, each.latency)));
    });
    $("variants").replaceChildren(...rows);
  }
  function drawSplits() {
    const drawn = [];
    for (const [alias, rules] of Object.entries(state.aliases)) {
      const parts = Object.entries(rules.split).map(([variant, bp]) => ({ variant, share: bp / BP }));
      const told = Object.entries(rules.split).map(([variant, bp]) => `${variant} ${share(bp)}`);
      drawn.push(el("p", { class: "bar-title", text: alias }), bar(`Split of ${alias}: ${told.join(", ")}`, parts),
        legend(Object.entries(rules.split).map(([variant, bp]) => [variant, `${variant} ${share(bp)}`])));
      for (const [cohort, rule] of Object.entries(rules.cohorts)) {
        const split = rule.split ? Object.entries(rule.split).map(([v, bp]) => `${v} ${share(bp)}`).join(", ") : "the split above";
        drawn.push(el("p", { class: "note", text: `Cohort ${cohort}: ${split}${rule.floor ? `, nothing cheaper than ${rule.floor}` : ""}` }));
      }
    }
    $("split-bars").replaceChildren(...drawn);
  }
  function grouped(parts) {
    const counts = new Map();
    for (const part of parts) counts.set(part.variant, { ...part, n: (counts.get(part.variant)?.n || 0) + 1 });
    return [...counts.values()].map(({ variant, share: each, n_bytes: size, n }) =>
      [variant, `${variant} ${n > 1 ? `${n} × ` : ""}${percent(each)} · ${bytes(size)}${n > 1 ? " each" : ""}`]);
  }
  function drawDevices() {
    const drawn = [];
    for (const device of state.devices) {
      const used = device.parts.reduce((sum, part) => sum + part.share, 0);
      const size = device.capacity_bytes ? ` of ${bytes(device.capacity_bytes)}` : "";
      const told = device.parts.map((part) => `${part.variant} ${percent(part.share)}`).join(", ");
      drawn.push(
        el("p", { class: "bar-title" }, el("span", { text: device.name }), el("span", { text: `${percent(used)}${size}` })),
        bar(`${device.name}: ${told || "nothing"}`, device.parts),
        legend(grouped(device.parts)));
    }
    if (!drawn.length) drawn.push(el("p", { text: "Nothing is known of a device yet." }));
    if (state.not_placed.length) {
      drawn.push(el("p", { class: "note", text: `On no device, or not known: ${state.not_placed.join(", ")}` }));
    }
    drawn.push(el("p", { class: "note", text: "As planned: the share that each replica sets aside, laid out by type. Bytes are weights and cache." }));
    $("devices").replaceChildren(...drawn);
  }
  function drawLadder() {
    const drawn = [];
    for (const [alias, rules] of Object.entries(state.aliases)) {
      if (!rules.ladder) continue;
      const { rung, reason, rungs } = rules.ladder;
      drawn.push(el("p", { class: "bar-title", text: `${alias}: rung ${Object.keys(rungs).indexOf(rung) + 1} of ${Object.keys(rungs).length}, ${rung}` }),
        ...(reason ? [el("p", { text: reason })] : []),
        legend(Object.entries(rungs).map(([name, each]) => [name, `${name} ${share(each.share_bp)}, P95 ${time(each.ttft_p95_s)}`])));
    }
    $("ladder").replaceChildren(...(drawn.length ? drawn : [el("p", { text: "No ladder is configured." })]));
  }
  function drawShadow() {
    const drawn = [];
    for (const [alias, rules] of Object.entries(state.aliases)) {
      const shadow = rules.shadow;
      if (!shadow) continue;
      const n = Object.values(shadow.mirrored).reduce((a, b) => a + b, 0);
      const dropped = Object.values(shadow.dropped).reduce((a, b) => a + b, 0);
      drawn.push(el("p", { class: "bar-title", text: `${alias} → ${shadow.variant}` }),
        el("p", { text: `${share(shadow.share_bp)} of requests are mirrored: ${n} compared, ${dropped} dropped` }));
      const means = Object.entries(shadow.means);
      if (means.length) {
        drawn.push(el("ul", { class: "lines" }, ...means.map(([name, value]) =>
          el("li", { text: `${name.replaceAll("_", " ")} ${name === "length_ratio" ? value.toFixed(3) : percent(value)}` }))));
      } else drawn.push(el("p", { class: "note", text: "No greedy answer has been compared yet." }));
    }
    $("shadow").replaceChildren(...(drawn.length ? drawn : [el("p", { text: "Nothing is mirrored." })]));
  }
  function drawVerdicts() {
    const { missing, ...kinds } = state.reports;
    if (missing) { $("verdicts").replaceChildren(el("p", { class: "note", text: missing })); return; }
    const drawn = [];
    for (const [kind, found] of Object.entries(kinds)) {
      const title = kind === "campaign" ? "Campaign" : "Rollout";
      if (!found) { drawn.push(el("p", { text: `${title}: none found` })); continue; }
      const tone = { pass: "good", promoted: "good", fail: "bad", "rolled back": "bad", error: "bad" }[found.verdict] || "warn";
      drawn.push(el("p", {}, `${title} ${found.name}: `, el("span", { class: `verdict ${tone}`, text: found.verdict })),
        el("ul", { class: "lines" }, ...found.lines.map((line) => el("li", { text: line }))),
        el("p", { class: "note", text: `Written ${new Date(1000 * found.written_epoch_s).toLocaleString()}` }));
    }
    $("verdicts").replaceChildren(...drawn);
  }

  // What changed since the last snapshot, for those who hear the page: never more than that.
  function tellChanges() {
    const news = [];
    for (const [name, each] of Object.entries(state.variants)) {
      if (seen.health.has(name) && seen.health.get(name) !== each.health) news.push(`${name} is ${each.health}`);
      seen.health.set(name, each.health);
    }
    for (const [alias, rules] of Object.entries(state.aliases)) {
      if (seen.splits.has(alias) && !isSame(seen.splits.get(alias), rules.split)) {
        news.push(`the split of ${alias} is now ${Object.entries(rules.split).map(([v, bp]) => `${v} ${share(bp)}`).join(", ")}`);
      }
      seen.splits.set(alias, rules.split);
      const rung = rules.ladder ? rules.ladder.rung : null;
      if (seen.rungs.has(alias) && seen.rungs.get(alias) !== rung) news.push(`the ladder of ${alias} is down to ${rung}`);
      seen.rungs.set(alias, rung);
    }
    if (news.length) announce(`${news.join("; ")}.`);
  }

  function drawSliders() {
    const names = Object.keys(state.aliases);
    if (!names.includes(chosen)) { chosen = state.model; draft = null; }
    const live = state.aliases[chosen].split;
    const select = $("alias");
    if ([...select.options].map((each) => each.value).join() !== names.join()) {
      select.replaceChildren(...names.map((name) => el("option", { value: name, text: name })));
      select.value = chosen;
      $("alias-row").hidden = names.length < 2;
    }
    const isDirty = draft !== null && !isSame(draft.base, draft.shares);
    if (draft !== null && !isSame(draft.base, live)) {
      if (isDirty && !isSending && !isSame(draft.shares, live)) result("The split has changed meanwhile; the sliders show it as it is now.", "warn");
      draft = null;
    }
    if (draft === null) draft = { base: { ...live }, shares: { ...live } };
    const box = $("sliders");
    const have = [...box.querySelectorAll("input")].map((each) => each.dataset.variant);
    if (have.join() !== Object.keys(live).join()) {
      box.replaceChildren(...Object.keys(live).map((name, i) => {
        const input = el("input", { type: "range", id: `share-${i}`, min: 0, max: BP, step: 100, "data-variant": name });
        input.addEventListener("input", () => {
          draft.shares = withShare(draft.shares, name, Number(input.value));
          result("");
          showDraft(name);
        });
        return el("div", { class: "slider" },
          el("label", { for: input.id }, hue(el("span", { class: "swatch", "aria-hidden": "true" }), name), name),
          input, el("output", { for: input.id }));
      }));
    }
    showDraft();
  }
  function showDraft(moved = null) {
    for (const input of $("sliders").querySelectorAll("input")) {
      const name = input.dataset.variant;
      const bp = draft.shares[name];
      if (name !== moved && Number(input.value) !== bp) {
        input.step = bp % 100 ? 1 : 100; // a share between the steps is shown as it is
        input.value = bp;
      }
      input.setAttribute("aria-valuetext", share(bp));
      const text = share(bp);
      if (input.nextElementSibling.textContent !== text) input.nextElementSibling.textContent = text;
    }
    const isDirty = !isSame(draft.base, draft.shares);
    $("apply").disabled = !isDirty || isSending;
    $("reset").disabled = !isDirty || isSending;
    const ladder = state.aliases[chosen].ladder ? " The precision ladder moves the same shares: deploy without it first." : "";
    const text = isDirty ? `${percent(movingShare(draft.base, draft.shares))} of sessions move to another variant.${ladder}` : "";
    if ($("preview").textContent !== text) $("preview").textContent = text;
  }
  function result(text, tone = "") {
    $("split-result").textContent = text;
    $("split-result").className = tone;
  }

  function draw() {
    $("model").textContent = state.model;
    document.title = `${state.model} · QuanTile console`;
    drawFigures(); drawVariants(); drawSplits(); drawDevices(); drawLadder(); drawShadow(); drawVerdicts();
    $("split-form").hidden = !isAdmin;
    $("read-only").hidden = isAdmin;
    if (isAdmin) drawSliders();
    tellChanges();
  }

  const headers = () => {
    const key = sessionStorage.getItem(KEY);
    return key ? { authorization: `Bearer ${key}` } : {};
  };
  async function problem(answer) {
    try { return (await answer.json()).error.message; } catch { return `the router answered ${answer.status}`; }
  }
  function connection(kind, text) {
    $("connection").dataset.state = kind;
    if ($("connection-text").textContent !== text) {
      $("connection-text").textContent = text;
      if (kind !== "connecting") announce(text);
    }
  }
  function askForKey(why) {
    $("key-why").textContent = why;
    $("key-form").hidden = false;
    $("key").focus();
  }
  async function learnWho() {
    isAdmin = false; who = null;
    if (!sessionStorage.getItem(KEY)) return;
    const answer = await fetch("/console/who", { headers: headers(), cache: "no-store" });
    if (answer.ok) {
      who = await answer.json();
      isAdmin = who.admin;
      if (!isAdmin) result(`${who.tenant} may look, and not change the split.`);
    }
  }
  async function read(answer) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    let isTold = false;
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return isTold;
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      const last = events.reverse().find((event) => event.startsWith("data: "));
      if (last) {
        isTold = true;
        state = JSON.parse(last.slice(6));
        connection("live", "Live");
        draw();
      }
    }
  }
  async function watch() {
    if (stream) stream.abort();
    const mine = stream = new AbortController();
    while (stream === mine) {
      try {
        const answer = await fetch("/console/events", { headers: headers(), cache: "no-store", signal: mine.signal });
        if (answer.status === 401) {
          connection("lost", "An API key is needed");
          askForKey(await problem(answer));
          return;
        }
        if (answer.ok) {
          if (await read(answer)) continue; // a stream ends after some minutes: ask anew
          connection("lost", "Not live: this router replica is ending");
        } else connection("lost", `Not live: ${await problem(answer)}`);
      } catch (error) {
        if (stream !== mine) return;
        connection("lost", "Not live: the router does not answer; trying again");
      }
      await new Promise((resolve) => { setTimeout(resolve, RETRY_MS); });
    }
  }
  async function begin() {
    try { await learnWho(); } catch { /* the stream says what is wrong */ }
    if (state) draw();
    await watch();
  }

  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEY, $("key").value.trim());
    $("key").value = "";
    $("key-form").hidden = true;
    result("");
    $("main").focus();
    begin();
  });
  $("ask-key").addEventListener("click", () => askForKey("The key of a tenant with admin: true."));
  $("forget").addEventListener("click", () => {
    sessionStorage.removeItem(KEY);
    draft = null;
    result("The key is forgotten.");
    $("main").focus();
    begin();
  });
  $("reset").addEventListener("click", () => { draft = null; result(""); drawSliders(); });
  $("alias").addEventListener("change", () => { chosen = $("alias").value; draft = null; $("sliders").replaceChildren(); drawSliders(); });
  $("split-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const wanted = { model: chosen, expected: draft.base, split: draft.shares };
    isSending = true;
    showDraft();
    result("Applying…");
    try {
      const answer = await fetch("/console/split", {
        method: "POST", cache: "no-store", body: JSON.stringify(wanted),
        headers: { ...headers(), "content-type": "application/json" },
      });
      if (answer.ok) result("Applied: router replicas follow within seconds.", "good");
      else result(`Not changed: ${await problem(answer)}`, "bad");
    } catch {
      result("The router did not answer: look at the split before you try again.", "bad");
    }
    isSending = false;
    if (draft) showDraft();
  });
  begin();
})();
