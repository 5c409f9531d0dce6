"use strict";

// The page of a comparison: `data` is what tools/comparison/page.py wrote. Text of users is only ever set as text.

const data = JSON.parse(document.getElementById("data").textContent);
const AXES = { step: "step (updates)", epoch: "epoch", minutes: "minutes, validation included" };
const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3]];
const N_COLOURS = 8;
const CHART_HEIGHT = 240;
const MOST_WITH_POINTS = 40; // points of a curve that are marked one by one
const REACH = 40; // pixels from the pointer to the point that it asks for

// --- elements

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function checkbox(label, checked, change) {
  const box = element("input", { type: "checkbox", checked, onchange: () => change(box.checked) });
  return element("label", {}, box, label);
}

// --- state, kept in the address so that a reload and a link show the same

const DEFAULTS = {
  axis: "step", smoothing: 0, log: false, off: [], filter: "", sort: null, descending: false,
  seeds: false, minor: false, equal: false, more: false,
};

function savedStates() {
  try {
    const saved = JSON.parse(decodeURIComponent(location.hash.slice(1)));
    return saved && typeof saved === "object" ? saved : {};
  } catch {
    return {}; // no state, or an address that another page made
  }
}

const saved = savedStates();
const states = Object.fromEntries(data.sections.map((s) => [s.id, { ...DEFAULTS, ...saved[s.id] }]));
let paused = saved.paused === true;

function saveStates() {
  const changed = paused ? { paused } : {};
  for (const [id, state] of Object.entries(states)) {
    const entries = Object.entries(state).filter(([key, value]) => String(value) !== String(DEFAULTS[key]));
    if (entries.length) changed[id] = Object.fromEntries(entries);
  }
  const hash = Object.keys(changed).length ? `#${encodeURIComponent(JSON.stringify(changed))}` : " ";
  history.replaceState(null, "", hash === " " ? location.pathname + location.search : hash);
}

// --- numbers, as training/metrics.py shows them

function shown(metric, value) {
  if (metric.digits === null) return significant(value) + metric.unit;
  const text = (value * metric.factor).toLocaleString("en-US", {
    minimumFractionDigits: metric.digits, maximumFractionDigits: metric.digits,
  });
  return text + metric.unit;
}

function significant(value) {
  return String(Number(value.toPrecision(5)));
}

// --- one section: the runs of one script

class Section {
  constructor(content) {
    this.content = content;
    this.state = states[content.id];
    this.charts = [];
    this.root = element("section", { id: content.id, "aria-labelledby": `${content.id}-title` });
    content.rows.forEach((row, i) => {
      row.colour = `--c${i % N_COLOURS}`;
      row.dash = DASHES[Math.floor(i / N_COLOURS) % DASHES.length];
    });
    this.build();
  }

  build() {
    const { id, title, rows, runs } = this.content;
    this.root.append(
      element("h2", { id: `${id}-title`, tabindex: -1 }, title),
      element("p", { class: "faint" }, `${count(runs.length, "run")}, ${count(rows.length, "setting")}`),
    );
    this.buildTable();
    this.buildCurves();
    this.buildSamples();
    this.buildMadeBy();
  }

  change(values, ...updates) {
    Object.assign(this.state, values);
    saveStates();
    for (const update of updates) update.call(this);
  }

  // Rows that the filter lets through.
  passes(row) {
    const words = this.state.filter.toLowerCase().split(/\s+/).filter(Boolean);
    const settings = this.content.columns.filter((c) => c.kind === "setting");
    const own = settings.map((c) => `${c.key} ${row.cells[c.key][0]}`);
    const text = [row.name, row.status, ...own].join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  }

  visible(row) {
    return this.passes(row) && !this.state.off.includes(row.name);
  }

  // --- table

  buildTable() {
    const { content, state } = this;
    const search = element("input", {
      type: "search", value: state.filter, autocomplete: "off",
      oninput: () => this.change({ filter: search.value }, this.fillTable, this.fillLegend, this.drawSoon, this.fillSamples),
    });
    this.found = element("span", { role: "status", class: "faint" });
    const controls = element("div", { class: "controls" }, element("label", {}, "Filter runs", search), this.found);
    if (content.columns.some((c) => c.minor)) {
      controls.append(checkbox("Every metric", state.minor, (on) => this.change({ minor: on }, this.fillTable)));
    }
    if (content.seed_rows.length) {
      controls.append(checkbox("One row a seed", state.seeds, (on) => this.change({ seeds: on }, this.fillTable)));
    }
    const equal = Object.entries(content.equal);
    this.equal = element("dl", { class: "equal" });
    for (const [key, value] of equal) {
      this.equal.append(element("div", {}, element("dt", {}, key), element("dd", {}, value)));
    }
    const showEqual = () => { this.equal.hidden = !state.equal; };
    if (equal.length) {
      const label = content.runs.length > 1 ? `Settings that are equal (${equal.length})` : `Settings (${equal.length})`;
      controls.append(checkbox(label, state.equal, (on) => this.change({ equal: on }, showEqual)));
    }
    showEqual();
    this.table = element("table");
    this.root.append(
      element("h3", {}, "Results"), ...(content.note ? [element("p", { class: "warning" }, content.note)] : []), controls,
      element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Results, ${content.title}` }, this.table),
      this.equal,
    );
    this.fillTable();
  }

  tableRows() {
    return this.state.seeds && this.content.seed_rows.length ? this.content.seed_rows : this.content.rows;
  }

  fillTable() {
    const { state } = this;
    const seed = { key: "seed", title: "seed", kind: "setting" };
    const bySeed = this.tableRows() === this.content.seed_rows;
    const columns = [...(bySeed ? [seed] : []), ...this.content.columns.filter((c) => state.minor || !c.minor)];
    const head = element("tr", {}, this.header({ key: "", title: "run" }), this.header({ key: " ", title: "status" }));
    head.append(...columns.map((c) => this.header(c)));
    const rows = this.tableRows();
    const passing = this.sorted(rows.filter((row) => this.passes(row)));
    const body = element("tbody");
    for (const row of passing) {
      const seeds = row.runs.length > 1 ? ` (${row.runs.length} seeds)` : "";
      const line = element("tr", {}, element("th", { scope: "row" }, row.name + seeds));
      line.append(element("td", { class: "status" }, row.status));
      for (const column of columns) line.append(tableCell(column, row.cells[column.key]));
      body.append(line);
    }
    const caption = element("caption", { class: "unseen" }, `Results, ${this.content.title}`);
    this.table.replaceChildren(caption, element("thead", {}, head), body);
    this.found.textContent = passing.length < rows.length ? `${passing.length} of ${rows.length} rows` : `${count(rows.length, "row")}`;
  }

  header(column) {
    const { state } = this;
    const sorts = state.sort === column.key;
    const sort = () => {
      const descending = sorts ? !state.descending : column.kind === "number";
      this.change({ sort: column.key, descending }, this.fillTable);
      [...this.table.querySelectorAll("thead button")].find((b) => b.dataset.key === column.key).focus();
    };
    return element(
      "th",
      { scope: "col", class: column.kind, "aria-sort": sorts ? (state.descending ? "descending" : "ascending") : "none" },
      element("button", { type: "button", "data-key": column.key, onclick: sort }, column.title),
    );
  }

  sorted(rows) {
    const { sort, descending } = this.state;
    if (sort === null) return rows;
    const sign = descending ? -1 : 1;
    const names = new Intl.Collator("en", { numeric: true });
    const key = (row) => (sort === "" ? [row.name] : sort === " " ? [row.status] : row.cells[sort] ?? [""]);
    return [...rows].sort((a, b) => {
      const [textA, valueA] = key(a);
      const [textB, valueB] = key(b);
      if (valueA != null && valueB != null) return sign * (valueA - valueB);
      if (valueA != null || valueB != null) return valueA != null ? -1 : 1; // what is missing comes last either way
      return sign * names.compare(textA, textB);
    });
  }

  // --- curves

  buildCurves() {
    const { content, state } = this;
    const { main, others } = content.charts;
    this.root.append(element("h3", {}, "Curves"));
    if (!main.length && !others.length) {
      this.root.append(element("p", { class: "faint" }, "No curve has two points yet."));
      return;
    }
    const axes = element("fieldset", {}, element("legend", {}, "Over"));
    for (const axis of Object.keys(AXES)) {
      const input = element("input", {
        type: "radio", name: `${content.id}-axis`, value: axis, checked: state.axis === axis,
        onchange: () => { for (const chart of this.charts) chart.zoom = null; this.change({ axis }, this.drawSoon); },
      });
      axes.append(element("label", {}, input, axis));
    }
    const strength = element("output", {}, String(state.smoothing));
    const slider = element("input", {
      type: "range", min: 0, max: 0.99, step: 0.01, value: state.smoothing,
      oninput: () => {
        strength.textContent = slider.value;
        this.change({ smoothing: Number(slider.value) }, this.drawSoon);
      },
    });
    this.legend = element("div", { class: "legend", role: "group", "aria-label": "Runs in the curves" });
    const all = element("button", { type: "button", onclick: () => this.show(content.rows) }, "All");
    const none = element("button", { type: "button", onclick: () => this.show([]) }, "None");
    const best = content.samples.rows.map((i) => content.rows[i]);
    const onlyBest = element("button", { type: "button", onclick: () => this.show(best) }, `Best ${best.length}`);
    if (best.length === content.rows.length) onlyBest.hidden = true;
    this.root.append(
      element(
        "div", { class: "controls" }, axes, element("label", {}, "Smoothing", slider, strength),
        checkbox("Log scale", state.log, (log) => this.change({ log }, this.drawSoon)), all, none, onlyBest,
      ),
      this.legend,
      element("p", { class: "faint" }, thinningNote(content)),
    );
    this.fillLegend();
    this.addCharts(main, this.root);
    if (others.length) {
      const more = element("details", {}, element("summary", {}, `${others.length} more curves`));
      const fill = () => {
        if (more.open && more.childElementCount === 1) {
          this.addCharts(others, more);
          this.drawSoon();
        }
        if (state.more !== more.open) this.change({ more: more.open });
      };
      more.addEventListener("toggle", fill);
      more.open = state.more || !main.length;
      this.root.append(more);
    }
  }

  addCharts(names, parent) {
    const grid = element("div", { class: "charts" });
    parent.append(grid);
    for (const name of names) {
      const chart = new Chart(this, name);
      grid.append(chart.root);
      this.charts.push(chart);
    }
  }

  fillLegend() {
    if (!this.legend) return;
    const focused = this.legend.contains(document.activeElement) ? document.activeElement.dataset.run : null;
    const buttons = this.content.rows.filter((row) => this.passes(row)).map((row) => {
      const on = !this.state.off.includes(row.name);
      const toggle = () => this.show(this.content.rows.filter((r) => (r === row ? !on : !this.state.off.includes(r.name))));
      const focus = (strong) => () => { for (const chart of this.charts) chart.highlight(strong ? row : null); };
      return element(
        "button",
        {
          type: "button", "aria-pressed": String(on), "data-run": row.name, onclick: toggle,
          onmouseenter: focus(true), onmouseleave: focus(false), onblur: focus(false),
          onfocus: (event) => { if (event.target.matches(":focus-visible")) focus(true)(); },
        },
        swatch(row), row.name,
      );
    });
    this.legend.replaceChildren(...buttons);
    buttons.find((button) => button.dataset.run === focused)?.focus();
  }

  show(rows) {
    const off = this.content.rows.filter((row) => !rows.includes(row)).map((row) => row.name);
    this.change({ off }, this.fillLegend, this.drawSoon, this.fillSamples);
  }

  drawSoon() {
    cancelAnimationFrame(this.pending);
    this.pending = requestAnimationFrame(() => this.draw());
  }

  draw() {
    for (const chart of this.charts) chart.draw();
  }

  // --- samples

  buildSamples() {
    const { samples } = this.content;
    if (!samples.sentences.length && !samples.figures.length) return;
    this.root.append(element("h3", {}, "The same samples"));
    if (samples.note) this.root.append(element("p", { class: "faint" }, samples.note));
    this.sentences = element("div");
    this.pictures = []; // [figure element, row]
    const { sentences, figures } = samples;
    const foldable = (title, content, open) => element("details", { open }, element("summary", {}, title), content);
    if (sentences.length) this.root.append(foldable(count(sentences.length, "test sentence"), this.sentences, true));
    figures.forEach((figure, i) => {
      const pictures = element("div", { class: "pictures" });
      for (const image of figure.images) pictures.append(this.picture(figure.title, image));
      this.root.append(foldable(figure.title, pictures, i === 0));
    });
    this.fillSamples();
  }

  sampled(place) {
    return this.content.rows[this.content.samples.rows[place]];
  }

  fillSamples() {
    if (!this.sentences) return;
    const blocks = this.content.samples.sentences.map((sentence) => {
      const list = element("dl", {});
      list.append(element("dt", {}, "source"), element("dd", { class: "given" }, sentence.source));
      list.append(element("dt", {}, "reference"), element("dd", { class: "given" }, sentence.reference));
      for (const [place, text] of sentence.outputs) {
        const row = this.sampled(place);
        if (this.visible(row)) list.append(element("dt", {}, row.name), element("dd", {}, text || "(empty)"));
      }
      return element("div", { class: "sentence" }, list);
    });
    this.sentences.replaceChildren(...blocks);
    for (const [figure, row] of this.pictures) figure.hidden = !this.visible(row);
  }

  picture(title, image) {
    const row = this.sampled(image.run);
    const { name } = row;
    const picture = element("img", { src: image.src, width: image.width, height: image.height, alt: `${title} of ${name}` });
    const figure = element("figure");
    const button = element("button", {
      type: "button", "aria-expanded": "false", title: "larger or smaller",
      onclick: () => button.setAttribute("aria-expanded", String(figure.classList.toggle("large"))),
    }, picture);
    figure.append(element("figcaption", {}, name), button);
    this.pictures.push([figure, row]);
    return figure;
  }

  // --- hardware, code, command

  buildMadeBy() {
    const { made_by: keys, rows, title } = this.content;
    const head = element("tr", {}, ...["run", ...keys].map((key) => element("th", { scope: "col" }, key)));
    const body = element("tbody");
    for (const row of rows) {
      const cells = row.made_by.map((text, i) => element("td", { class: keys[i] }, text || "not known yet"));
      body.append(element("tr", {}, element("th", { scope: "row" }, row.name), ...cells));
    }
    const caption = element("caption", { class: "unseen" }, `Hardware, code and command, ${title}`);
    const table = element("table", {}, caption, element("thead", {}, head), body);
    const region = element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Hardware, ${title}` }, table);
    this.root.append(element("h3", {}, "Hardware, code and command"), region);
  }
}

function count(n, noun) {
  return `${n} ${noun}${n === 1 ? "" : "s"}`;
}

function thinningNote(content) {
  const note = `Drag over a chart to look closer, double-click to go back. Curves of more than ${content.most_points} points
    show the lowest and highest of each stretch.`;
  const seeds = content.rows.some((row) => row.runs.length > 1) ? " Seeds of a setting share a line style." : "";
  return note.replace(/\s+/g, " ") + seeds;
}

function tableCell(column, [text, , best]) {
  if (!best) return element("td", { class: column.kind }, text);
  return element("td", { class: column.kind }, element("strong", {}, text), element("span", { class: "unseen" }, " (best)"));
}

function swatch(row) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const line = document.createElementNS(space, "line");
  const attributes = { x1: 0, y1: 5, x2: 28, y2: 5, "stroke-width": 3, "stroke-dasharray": row.dash.join(" ") };
  for (const [name, value] of Object.entries(attributes)) line.setAttribute(name, value);
  line.style.stroke = `var(${row.colour})`;
  svg.setAttribute("aria-hidden", "true");
  svg.append(line);
  return svg;
}

// --- one chart: a metric of all runs

class Chart {
  constructor(section, name) {
    this.section = section;
    this.name = name;
    this.metric = section.content.metrics[name];
    this.zoom = null;
    this.plotArea = element("div", { class: "plot", role: "img" });
    this.caption = element("figcaption");
    const numbers = element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Numbers, ${this.metric.label}` });
    this.details = element("details", {}, element("summary", {}, "Numbers"), numbers);
    this.details.addEventListener("toggle", () => this.fillNumbers());
    this.root = element("figure", { class: "chart", "data-metric": name }, this.caption, this.plotArea, this.details);
    this.tip = element("div", { class: "tip", "aria-hidden": "true", hidden: true });
    this.point = element("div", { class: "point", hidden: true });
    new ResizeObserver(() => this.fit()).observe(this.plotArea);
  }

  // [{row, x, y, raw, places}] of the runs that are shown; y smoothed, raw as metrics.jsonl has it.
  curves() {
    const { state, content } = this.section;
    const curves = [];
    for (const row of content.rows) {
      if (!this.section.visible(row)) continue;
      row.runs.forEach((place, i) => {
        const run = content.runs[place];
        const curve = run.curves[this.name];
        if (!curve) return;
        const column = state.axis === "minutes" ? run.time : run[state.axis];
        const kept = curve[0].map((_, k) => k).filter((k) => column[curve[0][k]] !== null);
        const scale = state.axis === "minutes" ? 1 / 60 : 1;
        const raw = kept.map((k) => curve[1][k]);
        curves.push({
          row, run, seed: row.runs.length > 1 ? row.seeds[i] : null, raw,
          x: kept.map((k) => column[curve[0][k]] * scale),
          y: smoothed(raw, state.smoothing).map((v) => v * this.metric.factor),
          places: kept.map((k) => curve[0][k]),
        });
      });
    }
    return curves.filter((curve) => curve.x.length);
  }

  draw() {
    const { state } = this.section;
    this.plot?.destroy();
    this.plot = null;
    this.drawn = this.curves();
    const log = state.log && this.drawn.every((curve) => curve.y.every((v) => v > 0));
    const unit = this.metric.unit ? `, in${this.metric.unit}` : "";
    this.caption.textContent = this.metric.label + unit + (state.log && !log ? " (linear: it has values of 0 or less)" : "");
    this.plotArea.setAttribute("aria-label", this.summary());
    if (this.details.open) this.fillNumbers();
    const width = this.plotArea.clientWidth;
    if (!this.drawn.length || width < 50) {
      this.plotArea.replaceChildren(element("p", { class: "faint" }, "None of the chosen runs has it."));
      return;
    }
    this.plotArea.replaceChildren();
    const css = getComputedStyle(document.documentElement);
    const colour = (name) => css.getPropertyValue(name).trim();
    const axis = {
      stroke: colour("--faint"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") },
      font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif",
    };
    const series = this.drawn.map(({ row, x }) => ({
      stroke: colour(row.colour), dash: row.dash, width: 1.75, paths: uPlot.paths.linear(),
      facets: [{ scale: "x", auto: true, sorted: 1 }, { scale: "y", auto: true }],
      points: {
        show: () => x.length <= MOST_WITH_POINTS, size: 5, fill: colour(row.colour),
        filter: (u, i, show) => (show ? x.map((_, k) => k) : null),
      },
    }));
    const options = {
      mode: 2, width, height: CHART_HEIGHT, legend: { show: false }, focus: { alpha: 0.2 },
      cursor: { y: false, drag: { x: true, y: false, setScale: false }, points: { show: false }, dataIdx: () => null },
      scales: {
        x: { time: false, auto: true, range: (u, low, high) => this.zoom ?? wide(low, high, 0.01) },
        y: { auto: true, distr: log ? 3 : 1, range: () => (log ? wideLog : wide)(...this.heights(), 0.06) },
      },
      axes: [
        { ...axis, label: AXES[state.axis], labelSize: 18, size: 34 },
        { ...axis, size: (u, values) => 16 + 7 * Math.max(2, ...(values ?? []).map((v) => String(v ?? "").length)) },
      ],
      series: [{}, ...series],
      hooks: {
        setSelect: [(u) => {
          const { left, width } = u.select;
          if (width > 2) this.zoomTo([u.posToVal(left, "x"), u.posToVal(left + width, "x")]);
        }],
        setCursor: [(u) => this.pointAt(u)],
      },
    };
    this.plot = new uPlot(options, [null, ...this.drawn.map(({ x, y }) => [x, y])], this.plotArea);
    this.plot.over.addEventListener("dblclick", () => this.zoomTo(null));
    this.plot.over.append(this.point, this.tip);
    this.hidePoint();
  }

  zoomTo(range) {
    this.zoom = range;
    requestAnimationFrame(() => this.draw()); // not in the middle of the plot's own event
  }

  // Lowest and highest of what the zoom shows; [null, null] where that is nothing.
  heights() {
    const [from, to] = this.zoom ?? [-Infinity, Infinity];
    let low = Infinity;
    let high = -Infinity;
    for (const { x, y } of this.drawn) {
      for (let k = firstAtLeast(x, from); k < x.length && x[k] <= to; k++) {
        low = Math.min(low, y[k]);
        high = Math.max(high, y[k]);
      }
    }
    return low <= high ? [low, high] : [null, null];
  }

  fit() {
    const width = this.plotArea.clientWidth;
    if (width < 50 || width === this.plot?.width) return;
    if (this.plot) this.plot.setSize({ width, height: CHART_HEIGHT });
    else if (this.drawn?.length) this.draw();
  }

  highlight(row) {
    if (!this.plot) return;
    const i = row === null ? -1 : this.drawn.findIndex((curve) => curve.row === row);
    this.plot.setSeries(i < 0 ? null : i + 1, { focus: true });
  }

  label(curve) {
    return curve.seed === null ? curve.row.name : `${curve.row.name}, seed ${curve.seed}`;
  }

  hidePoint() {
    this.point.hidden = this.tip.hidden = true;
  }

  // Say which run's which value lies nearest to the pointer.
  pointAt(u) {
    const { left, top } = u.cursor;
    if (left == null || left < 0) { this.hidePoint(); return; }
    let nearest = null;
    const x = u.posToVal(left, "x");
    for (const curve of this.drawn) {
      const after = firstAtLeast(curve.x, x);
      for (const k of [after - 1, after]) {
        if (k < 0 || k >= curve.x.length) continue;
        const px = u.valToPos(curve.x[k], "x");
        const py = u.valToPos(curve.y[k], "y");
        const distance = Math.hypot(px - left, py - top);
        if (distance < REACH && (!nearest || distance < nearest.distance)) nearest = { curve, k, px, py, distance };
      }
    }
    if (!nearest) { this.hidePoint(); return; }
    const { curve, k, px, py } = nearest;
    this.tip.textContent = `${this.label(curve)}: ${this.pointText(curve, k)}`;
    this.point.hidden = this.tip.hidden = false;
    this.point.style.transform = `translate(${px}px, ${py}px)`;
    this.point.style.background = `var(${curve.row.colour})`;
    const width = u.over.clientWidth;
    this.tip.style.left = px < width / 2 ? `${px + 12}px` : "auto";
    this.tip.style.right = px < width / 2 ? "auto" : `${width - px + 12}px`;
    this.tip.style.top = `${Math.min(py, u.over.clientHeight - 50)}px`;
  }

  pointText(curve, k) {
    const { step, epoch, time } = curve.run;
    const place = curve.places[k];
    const smooth = this.section.state.smoothing ? ` (smoothed ${shown(this.metric, curve.y[k] / this.metric.factor)})` : "";
    const where = [`step ${step[place]}`];
    if (epoch[place] !== null) where.push(`epoch ${significant(epoch[place])}`);
    if (time[place] !== null) where.push(`${(time[place] / 60).toFixed(1)} min`);
    return `${shown(this.metric, curve.raw[k])}${smooth} at ${where.join(", ")}`;
  }

  best(curve) {
    if (!this.metric.better) return -1;
    const better = this.metric.better === "more" ? (a, b) => a > b : (a, b) => a < b;
    return curve.raw.reduce((best, value, k) => (better(value, curve.raw[best]) ? k : best), 0);
  }

  summary() {
    const curves = this.drawn;
    const ends = curves.slice(0, 6).map((curve) => `${this.label(curve)} ends at ${shown(this.metric, curve.raw.at(-1))}`);
    const more = curves.length > 6 ? [`${curves.length - 6} more under Numbers`] : [];
    return [`${this.metric.label} over ${this.section.state.axis}, ${count(curves.length, "curve")}`, ...ends, ...more].join("; ");
  }

  fillNumbers() {
    if (!this.details.open) return;
    const titles = ["run", "last", ...(this.metric.better ? ["best"] : [])];
    const head = element("tr", {}, ...titles.map((title) => element("th", { scope: "col" }, title)));
    const body = element("tbody");
    for (const curve of this.drawn ?? []) {
      const line = element("tr", {}, element("th", { scope: "row" }, this.label(curve)));
      line.append(element("td", {}, this.pointText(curve, curve.raw.length - 1)));
      if (this.metric.better) line.append(element("td", {}, this.pointText(curve, this.best(curve))));
      body.append(line);
    }
    this.details.lastChild.replaceChildren(element("table", {}, element("thead", {}, head), body));
  }
}

// Exponential average over the points, without the bias of its beginning.
function smoothed(values, weight) {
  if (!weight) return values;
  let average = 0;
  let total = 0;
  return values.map((value) => {
    average = weight * average + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return average / total;
  });
}

function wide(low, high, share) {
  if (low === null || high === null) return [0, 1];
  const margin = (high - low) * share || Math.abs(high) * 0.05 || 1;
  return [low - margin, high + margin];
}

function wideLog(low, high, share) {
  if (low === null || high === null) return [0.1, 1];
  const margin = (high / low) ** share;
  return margin > 1 ? [low / margin, high * margin] : [low / 1.1, high * 1.1];
}

function firstAtLeast(sorted, value) {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

// --- the page

function buildTop() {
  const runs = data.sections.reduce((sum, section) => sum + section.runs.length, 0);
  const title = `Comparison of ${count(runs, "run")}`;
  document.title = title;
  const top = document.getElementById("top");
  top.append(element("h1", {}, title), element("p", { class: "faint" }, `Made ${data.made}`));
  if (data.reload) {
    const box = checkbox(`Reload every ${data.reload} s`, !paused, (on) => { paused = !on; saveStates(); });
    top.append(element("div", { class: "controls" }, box));
    setInterval(() => {
      const typing = document.activeElement?.type === "search";
      if (!paused && !typing && !document.hidden) location.reload();
    }, 1000 * data.reload);
  }
  for (const note of data.notes) top.append(element("p", { class: "warning" }, note));
  if (data.sections.length > 1) {
    const links = data.sections.map((section) => {
      const go = (event) => { // the address holds the state
        event.preventDefault();
        const heading = document.getElementById(`${section.id}-title`);
        heading.scrollIntoView();
        heading.focus({ preventScroll: true });
      };
      return element("li", {}, element("a", { href: `#${section.id}`, onclick: go }, section.title));
    });
    top.append(element("nav", { "aria-label": "Scripts" }, element("ul", {}, ...links)));
  }
}

buildTop();
const sections = data.sections.map((content) => new Section(content));
document.getElementById("main").append(...sections.map((section) => section.root));
for (const section of sections) section.draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const section of sections) section.draw();
});
