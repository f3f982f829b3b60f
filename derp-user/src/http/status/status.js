// Draws the charts of the status page, and keeps its figures and tables current. The page is whole without this.
"use strict";

(() => {
  const PERIOD = 2000; // milliseconds between two questions
  const PATIENCE = 8000; // and for an answer
  const KEPT = 900; // samples: half an hour
  const SPAN = 600; // seconds that a chart shows at least

  const state = document.getElementById("state");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const charts = [];
  let run = null;
  let times = []; // seconds since the Unix epoch
  const series = {};

  // The same words as in derp-user/src/status/words.rs.
  function scaled(value, units) {
    let unit = 0;
    while (Math.abs(value) >= 999.5 && unit + 1 < units.length) {
      value /= 1000;
      unit += 1;
    }
    const size = Math.abs(value);
    const whole = unit === 0 && Number.isInteger(value);
    const digits = whole || size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2;
    return `${value.toFixed(digits)} ${units[unit]}`.trimEnd();
  }
  const prefixes = ["", "k", "M", "G", "T", "P", "E"];
  const words = {
    bits: (value) => scaled(value * 8, prefixes.map((it) => `${it}bit/s`)),
    rate: (value) => `${scaled(value, prefixes)}/s`,
    count: (value) => scaled(value, prefixes),
    percent: (value) => `${value.toFixed(1)} %`,
    bytes: (value) => scaled(value, prefixes.map((it) => `${it}B`)),
  };
  // On an axis the unit is short, and round numbers are short.
  function mark(unit, value) {
    const text = scaled(value, prefixes);
    return text.replace(/\.0+(?=\D|$)|(\.\d*?)0+(?=\D|$)/, "$1") + (unit === "percent" ? " %" : "");
  }

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function makeChart(figure) {
    const unit = figure.dataset.unit;
    const place = figure.querySelector(".plot");
    const lines = Array.from(figure.querySelectorAll("[data-series]"), (item) => ({
      name: item.dataset.series,
      value: item.querySelector("b"),
    }));
    const axis = { stroke: () => colour("--faint"), grid: { stroke: () => colour("--line"), width: 1 },
      ticks: { show: false }, font: "11px system-ui, sans-serif" };
    // An empty place has no size yet; the observer below sees what it gets.
    const size = () => ({ width: place.clientWidth || 300, height: place.clientHeight || 160 });
    const tell = (plot) => {
      const at = plot.cursor.idx ?? times.length - 1;
      for (const { name, value } of lines) {
        const number = series[name]?.[at];
        value.textContent = number == null ? "" : words[unit](number);
      }
    };
    const plot = new uPlot({
      ...size(),
      legend: { show: false },
      padding: [8, 12, 0, 0],
      cursor: { sync: { key: "derpd" }, drag: { x: false, y: false }, y: false },
      scales: {
        x: { range: (_, from, to) => [Math.min(from ?? to, to - SPAN), to] },
        y: { range: (_, from, to) => [0, to > 0 ? to * 1.1 : 1] },
      },
      axes: [
        { ...axis, space: 60, values: "{HH}:{mm}", size: 24 },
        { ...axis, space: 28, size: 52, values: (_, values) => values.map((it) => mark(unit, it)) },
      ],
      series: [{}, ...lines.map((_, index) => ({
        stroke: () => colour(`--c${index + 1}`), width: 1.5, points: { show: false },
      }))],
      hooks: { setCursor: [tell] },
    }, chartData(unit, lines), place);
    new ResizeObserver(() => plot.setSize(size())).observe(place);
    charts.push({ plot, unit, lines, tell });
  }

  // Bytes are drawn as bits where an axis is about these, so that its marks are round.
  function chartData(unit, lines) {
    const factor = unit === "bits" ? 8 : 1;
    const values = ({ name }) => (series[name] ?? times.map(() => null)).map((it) => it && it * factor);
    return [times, ...lines.map(values)];
  }

  // Puts samples behind those that are there; between two runs of the daemon is a gap.
  function take(status) {
    const { history } = status;
    if (run !== null && run !== status.run && times.length > 0) {
      push(times.at(-1) + 0.001, () => null);
    }
    run = status.run;
    history.times.forEach((time, at) => {
      if (times.length === 0 || time / 1000 > times.at(-1)) {
        push(time / 1000, (name) => history.series[name]?.[at] ?? null, Object.keys(history.series));
      }
    });
    const surplus = times.length - KEPT;
    if (surplus > 0) {
      times.splice(0, surplus);
      Object.values(series).forEach((values) => values.splice(0, surplus));
    }
  }

  function push(time, value, names = []) {
    for (const name of names) series[name] ??= times.map(() => null);
    for (const name of Object.keys(series)) series[name].push(value(name));
    times.push(time);
  }

  function draw() {
    for (const chart of charts) {
      chart.plot.setData(chartData(chart.unit, chart.lines));
      chart.tell(chart.plot);
    }
  }

  // Takes figures and tables from a newer copy of this page, but none from under a reader's selection.
  function renew(text) {
    const page = new DOMParser().parseFromString(text, "text/html");
    const selection = getSelection();
    for (const section of document.querySelectorAll("[data-live]")) {
      const newer = page.getElementById(section.id);
      const isRead = !selection.isCollapsed && selection.containsNode(section, true);
      const isUsed = section.contains(document.activeElement);
      if (newer !== null && !isRead && !isUsed && newer.innerHTML !== section.innerHTML) {
        section.replaceChildren(...newer.childNodes);
      }
    }
    const order = Array.from(page.querySelectorAll("[data-live]"), (it) => it.id).join();
    const own = Array.from(document.querySelectorAll("[data-live]"), (it) => it.id).join();
    if (order !== own) location.reload(); // The daemon shows other tables than before.
    return page.getElementById("state").textContent;
  }

  async function ask(address) {
    const answer = await fetch(address, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    if (!answer.ok) throw new Error(`HTTP status ${answer.status}`);
    return answer;
  }

  function documentAddress() {
    const query = new URLSearchParams({ rows: "0" });
    const key = new URLSearchParams(location.search).get("debugkey");
    if (key !== null) query.set("debugkey", key);
    if (run !== null && times.length > 0) {
      query.set("run", run);
      query.set("after", Math.round(times.at(-1) * 1000));
    }
    return `status.json?${query}`;
  }

  async function turn() {
    take(await (await ask(documentAddress())).json());
    draw();
    const uptime = renew(await (await ask(location.pathname + location.search)).text());
    state.textContent = `live, ${uptime}`;
    state.className = "live";
  }

  let lostSince = null;
  async function go() {
    if (!document.hidden) {
      try {
        await turn();
        lostSince = null;
      } catch (error) {
        lostSince ??= new Date().toLocaleTimeString();
        state.textContent = `no answer since ${lostSince}: ${error.message}; trying again`;
        state.className = "lost";
      }
    }
    setTimeout(go, PERIOD);
  }

  dark.addEventListener("change", () => charts.forEach(({ plot }) => plot.redraw()));
  document.querySelectorAll("#charts figure").forEach(makeChart);
  go();
})();
