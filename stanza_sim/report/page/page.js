/* The page: choices at its top, and charts that follow them. Texts are written as text, never as HTML. */
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const charts = new Map();
let colours, timeline;

function look() {
  const style = getComputedStyle(document.documentElement), of = (name) => style.getPropertyValue("--" + name).trim();
  colours = { text: of("text"), soft: of("soft"), line: of("line"), page: of("page"), raised: of("raised"), critical: data.critical,
    activities: data.activities.map((one) => one.colour), names: data.activities.map((one) => one.name),
    series: data.series.map((colour) => (colour === "#000000" ? of("text") : colour)) };
}

/* Set a chart's options, with what all have in common. `said` is what a screen reader says of it. */
function draw(id, option, said, height) {
  const element = byId(id);
  element.hidden = option === null;
  if (option === null) return;
  if (height) element.style.height = height + "px";
  element.setAttribute("aria-label", said);
  const fresh = !charts.has(id);
  if (fresh) charts.set(id, echarts.init(element, null, { renderer: "canvas" }));
  const chart = charts.get(id);
  if (!fresh) { chart.getZr().flush(); chart.resize(); }
  const tooltip = { confine: true, renderMode: "richText", backgroundColor: colours.raised, borderColor: colours.line, textStyle: { color: colours.text, fontSize: 12 } };
  chart.setOption({ animation: false, textStyle: { color: colours.text }, aria: { enabled: true, label: { enabled: false }, decal: { show: option.decal === true } },
    ...option, tooltip: { ...tooltip, ...option.tooltip } }, { notMerge: true });
}

const axis = (name, more) => ({ name, nameLocation: "middle", nameGap: 28, nameTextStyle: { color: colours.soft }, axisLabel: { color: colours.soft, hideOverlap: true },
  axisLine: { lineStyle: { color: colours.line } }, splitLine: { lineStyle: { color: colours.line, opacity: 0.6 } }, ...more });
const dark = () => matchMedia("(prefers-color-scheme: dark)").matches;
const narrow = () => document.documentElement.clientWidth < 640;
const rowsOf = (model) => data.runs.map((run, i) => i).filter((i) => data.runs[i].model === model);
const names = (labels) => ({ type: "category", inverse: true, data: labels, axisTick: { show: false }, axisLine: { lineStyle: { color: colours.line } },
  axisLabel: { color: colours.text, interval: 0, width: narrow() ? 110 : 230, overflow: "truncate" } });
const room = () => ({ left: narrow() ? 120 : 240, right: 70, top: 10, bottom: 44 });

function speed(rows) {
  const base = data.runs[rows[0]], apart = new Set(data.apart.filter(([model]) => model === base.model).map(([, label]) => label));
  let place = 0;
  const colour = rows.map((i) => (apart.has(data.runs[i].label) ? colours.series[place++ % colours.series.length] : colours.line));
  const label = { show: true, position: "right", color: colours.text, formatter: ({ value }) => value.toFixed(2) + "×" };
  const series = [{ name: "predicted", type: "bar", data: rows.map((i, k) => ({ value: data.runs[i].predicted.samples_per_s / base.predicted.samples_per_s, itemStyle: { color: colour[k] } })), label }];
  if (base.measured) series.push({ name: "measured", type: "bar", label,
    data: rows.map((i, k) => ({ value: data.runs[i].measured ? data.runs[i].measured.samples_per_s / base.measured.samples_per_s : null, itemStyle: { color: "transparent", borderColor: colour[k], borderWidth: 1.5 } })) });
  const bars = rows.length * series.length;
  draw("chart-speed", { grid: room(), xAxis: axis("samples/s over those of the first row (outlined: measured)", { type: "value" }), yAxis: names(rows.map((i) => data.runs[i].label)), series,
    tooltip: { formatter: ({ dataIndex }) => { const run = data.runs[rows[dataIndex]]; return run.label + "\n" + run.predicted.samples_per_s.toPrecision(5) + " samples/s predicted" + (run.measured ? ", " + run.measured.samples_per_s.toPrecision(5) + " measured" : ""); } } },
    "Speed-ups: " + rows.map((i) => data.runs[i].label + " " + (data.runs[i].predicted.samples_per_s / base.predicted.samples_per_s).toFixed(2)).join("; "), 70 + 30 * bars);
}

function goes(rows) {
  const bars = [];
  for (const i of rows) for (const which of ["predicted", "measured"]) if (data.rows[i][which]) bars.push([i, which]);
  if (!bars.length) return draw("chart-goes", null);
  const label = ([i, which]) => (which === "predicted" ? data.runs[i].label : "  measured");
  const series = data.activities.map((one, a) => ({ name: one.name, type: "bar", stack: "all", itemStyle: { color: one.colour }, data: bars.map(([i, which]) => data.rows[i][which].activities[a] * 1e3) }));
  draw("chart-goes", { decal: true, grid: { ...room(), top: 34 }, legend: { top: 0, textStyle: { color: colours.text } }, xAxis: axis("ms", { type: "value" }), yAxis: names(bars.map(label)), series,
    tooltip: { trigger: "axis", axisPointer: { type: "shadow" }, formatter: (found) => {
      const [i, which] = bars[found[0].dataIndex], kinds = Object.entries(data.rows[i][which].kinds).slice(0, 8);
      return data.runs[i].label + ", " + which + "\n" + kinds.map(([kind, s]) => kind + ": " + milliseconds(s * 1e3)).join("\n"); } } },
    "What an iteration goes to: " + bars.map((bar) => label(bar).trim() + " " + data.activities.map((one, a) => one.name + " " + milliseconds(data.rows[bar[0]][bar[1]].activities[a] * 1e3)).join(", ")).join("; "), 90 + 26 * bars.length);
}

/* What an iteration would take with something faster, as `run --explain` found. */
function why(i) {
  const run = data.runs[i], found = run.explanation;
  byId("why-text").textContent = found ? found.text : "Not looked at: add --explain to stanza-sim run.";
  if (!found || !found.effects.length) return draw("chart-why", null);
  const words = (one) => one.what + (one.place && one.place !== one.what ? " (" + one.place + ")" : "") + (one.times === null ? ": no time" : ": " + one.times + "×");
  const bars = [["as it is", run.predicted.iteration_s], ...found.effects.map((one) => [words(one), one.iteration_s])];
  const { left } = room();
  draw("chart-why", { grid: { ...room(), left: narrow() ? left + 20 : 340 }, xAxis: axis("iteration with this faster, ms", { type: "value" }),
    yAxis: { ...names(bars.map(([name]) => name)), axisLabel: { color: colours.text, interval: 0, width: narrow() ? 130 : 330, overflow: "truncate" } },
    series: [{ type: "bar", data: bars.map(([, s], k) => ({ value: s * 1e3, itemStyle: { color: k ? colours.series[2] : colours.soft } })), label: { show: true, position: "right", color: colours.text, formatter: ({ value }) => milliseconds(value) } }],
    tooltip: { formatter: ({ dataIndex }) => bars[dataIndex][0] + "\n" + milliseconds(bars[dataIndex][1] * 1e3) + " instead of " + milliseconds(bars[0][1] * 1e3) } },
    "What would help: " + bars.map(([name, s]) => name + " " + milliseconds(s * 1e3)).join("; "), 60 + 26 * bars.length);
}

function measured() {
  const done = data.runs.map((run, i) => i).filter((i) => data.runs[i].measured);
  byId("measured-hint").textContent = done.length ? "Measured: the median of all iterations; the line is where both agree." : "No row was run: add --execute to stanza-sim run.";
  if (!done.length) return draw("chart-measured", null);
  const models = [...new Set(done.map((i) => data.runs[i].model))], signs = ["circle", "rect", "triangle", "diamond", "pin", "arrow"];
  const series = models.map((model, m) => ({ name: model, type: "scatter", symbol: signs[m % signs.length], symbolSize: 11, itemStyle: { color: colours.series[m % colours.series.length] },
    data: done.filter((i) => data.runs[i].model === model).map((i) => [data.runs[i].measured.iteration_s * 1e3, data.runs[i].predicted.iteration_s * 1e3, i]) }));
  const every = series.flatMap((one) => one.data.flatMap(([x, y]) => [x, y])), low = Math.min(...every) / 1.3, high = Math.max(...every) * 1.3;
  series.push({ type: "line", data: [[low, low], [high, high]], showSymbol: false, silent: true, lineStyle: { color: colours.soft, width: 1 } });
  const scale = { type: high > 10 * low ? "log" : "value", min: low, max: high, axisLabel: { color: colours.soft, formatter: (v) => Number(v.toPrecision(2)) }, minorSplitLine: { show: false } };
  Object.assign(scale.axisLabel, { showMinLabel: false, showMaxLabel: false });
  draw("chart-measured", { grid: { left: 70, right: 20, top: 34, bottom: 50 }, legend: { top: 0, type: "scroll", data: models, textStyle: { color: colours.text } },
    xAxis: axis("measured iteration, ms", scale), yAxis: axis("predicted iteration, ms", { ...scale, nameGap: 46 }), series,
    tooltip: { formatter: ({ value }) => { const run = data.runs[value[2]]; return run.model + ", " + run.label + "\npredicted " + milliseconds(value[1]) + "\nmeasured " + milliseconds(value[0]) + "\nerror " + run.error_pct.toFixed(1) + "%"; } } },
    "Predicted against measured: " + done.map((i) => data.runs[i].label + " " + data.runs[i].error_pct.toFixed(1) + "%").join("; "), 420);
}

function traffic(i) {
  const found = data.rows[i].traffic, hint = byId("traffic-hint");
  if (!found) {
    hint.textContent = "Not counted: there are too many messages, or the folder does not say on which cluster.";
    return draw("chart-traffic", null);
  }
  const most = Math.max(1, ...found.nbytes.map(([, , n]) => n)), total = found.nbytes.reduce((sum, [, , n]) => sum + n, 0);
  hint.textContent = "Bytes of an iteration from place to place, " + bytes(total) + " in all" + (total ? "; the most is " + bytes(most) + "." : ": nothing moves.");
  const names = found.names.map((name) => name.replace(/^rank /, "")), of = found.names.every((name) => name.startsWith("rank ")) ? " rank" : "", upright = names.length > 12 || !of, category = (name, gap) => axis(name, { type: "category", data: names, nameGap: gap, splitLine: { show: false }, axisLabel: { color: colours.soft, hideOverlap: true, rotate: name.startsWith("to") && upright ? 90 : 0, width: 80, overflow: "truncate" } });
  draw("chart-traffic", { grid: { left: 100, right: 14, top: 10, bottom: upright ? 130 : 84 }, xAxis: category("to" + of, upright ? 74 : 28), yAxis: { ...category("from" + of, 84), inverse: true },
    visualMap: { min: 0, max: most, calculable: false, orient: "horizontal", left: "center", bottom: 0, itemWidth: 12, formatter: bytes, text: [bytes(most), "0"], textStyle: { color: colours.text }, inRange: { color: dark() ? ["#1d3a52", "#0072B2", "#56B4E9", "#e3f1fb"] : ["#deebf7", "#56B4E9", "#0072B2", "#08306b"] } },
    series: [{ type: "heatmap", data: found.nbytes.map(([a, b, n]) => [b, a, n]), itemStyle: { borderWidth: names.length > 32 ? 0 : 1, borderColor: colours.page }, progressive: 0 }],
    tooltip: { formatter: ({ value }) => found.names[value[1]] + " to " + found.names[value[0]] + "\n" + bytes(value[2]) } },
    "Traffic matrix: " + hint.textContent);
}

/* From idle to busy; told in words too. */
function heat(share) {
  const stops = [[0, 154, 164, 175], [0.5, 230, 159, 0], [1, 213, 60, 0]], s = Math.min(1, Math.max(0, share)), k = s < 0.5 ? 0 : 1;
  const [a, b] = [stops[k], stops[k + 1]], t = (s - a[0]) / (b[0] - a[0]);
  return "rgb(" + [1, 2, 3].map((c) => Math.round(a[c] + t * (b[c] - a[c]))).join(",") + ")";
}

function cluster(i) {
  const found = data.cluster, percent = (share) => (100 * share).toFixed(0) + "%";
  const busiest = data.rows[i].busiest.filter(([, share]) => share > 0);
  byId("cluster-hint").textContent = found ? found.name + ": " + found.hosts.toLocaleString("en") + (found.hosts === 1 ? " host, " : " hosts, ") + found.ranks.toLocaleString("en") + " ranks; what is alike is drawn once. Lines: mean and most use of a link, either direction." : "The folder does not say how the cluster is built: it is very large, or there are several.";
  draw("chart-busy", busiest.length ? { grid: { ...room(), left: narrow() ? 150 : 340 }, xAxis: axis("share of time busy", { type: "value", min: 0, max: 1, axisLabel: { color: colours.soft, formatter: percent } }),
    yAxis: { ...names(busiest.map(([name]) => name)), axisLabel: { color: colours.text, interval: 0, width: narrow() ? 140 : 330, overflow: "truncate" } },
    series: [{ type: "bar", data: busiest.map(([, share]) => ({ value: share, itemStyle: { color: heat(share) } })), label: { show: true, position: "right", color: colours.text, formatter: ({ value }) => percent(value) } }],
    tooltip: { formatter: ({ dataIndex }) => busiest[dataIndex][0] + "\n" + (100 * busiest[dataIndex][1]).toFixed(1) + "% busy" } } : null,
    "Busiest: " + busiest.map(([name, share]) => name + " " + percent(share)).join("; "), 60 + 22 * busiest.length);
  if (!found || !found.links.length) return draw("chart-cluster", null);
  const use = ([mean, most]) => percent(mean) + (mean.toFixed(2) === most.toFixed(2) ? "" : ", most " + percent(most));
  const levels = new Map();
  found.nodes.forEach((node, n) => levels.set(node.level, [...(levels.get(node.level) || []), n]));
  const order = [...levels.keys()].sort((a, b) => b - a), place = [];
  order.forEach((level, row) => levels.get(level).forEach((n, k) => (place[n] = [(100 * (k + 0.5)) / levels.get(level).length, 100 * (row / Math.max(1, order.length - 1))])));
  const nodes = found.nodes.map((node, n) => ({ name: String(n), value: place[n], symbolSize: 1, itemStyle: { color: colours.soft },
    label: { show: true, position: "inside", color: colours.text, fontSize: 11, lineHeight: 15, padding: 7, backgroundColor: colours.raised, borderColor: colours.soft,
      borderWidth: node.count > 1 ? 2 : 1, borderRadius: node.kind === "host" ? 5 : 0, width: narrow() ? 84 : 220, overflow: "truncate", align: "center",
      formatter: (node.count > 1 ? node.count.toLocaleString("en") + " × " : "") + node.name + (node.about === node.name ? "" : "\n" + node.about) +
        (node.inside ? "\n" + (narrow() ? "inside" : node.inside.about) + "\nbusy " + use(node.inside.busy[i]) : "") } }));
  const links = found.links.map((link) => ({ source: String(link.from), target: String(link.to), about: link.about, busy: link.busy[i],
    lineStyle: { color: heat(link.busy[i][1]), width: 2 + 5 * link.busy[i][1], opacity: 1, curveness: link.from === link.to ? 0.5 : 0 },
    label: { show: found.links.length <= 24, rotate: 0, color: colours.text, backgroundColor: colours.page, padding: 3, fontSize: 11, lineHeight: 14,
      formatter: (found.links.length <= 6 && !narrow() ? link.about + "\n" : "") + "busy " + use(link.busy[i]) } }));
  const hidden = { type: "value", min: 0, max: 100, show: false };
  draw("chart-cluster", { grid: { left: 0, right: 0, top: 40, bottom: 56 }, xAxis: hidden, yAxis: { ...hidden, inverse: true },
    series: [{ type: "graph", coordinateSystem: "cartesian2d", data: nodes, links, emphasis: { disabled: true } }],
    tooltip: { formatter: ({ dataType, data: one }) => dataType === "edge" ? one.about + "\nbusy: mean " + percent(one.busy[0]) + ", most " + percent(one.busy[1]) : found.nodes[Number(one.name)].name + "\n" + found.nodes[Number(one.name)].about } },
    "The cluster: " + found.links.map((link) => found.nodes[link.from].name + " to " + found.nodes[link.to].name + " busy " + percent(link.busy[i][0]) + ", most " + percent(link.busy[i][1])).join("; "), 110 + 110 * order.length);
}

function schedule(i) {
  const row = data.rows[i];
  byId("schedule-title").textContent = data.runs[i].model + ", " + data.runs[i].label;
  byId("schedule-text").textContent = row.schedule + (row.more_lines ? "\n… and " + row.more_lines + " more lines: schedules/" + row.files + ".txt" : "");
}

function fill(select, choices) {
  select.replaceChildren(...choices.map(([value, text]) => { const option = document.createElement("option"); option.value = value; option.textContent = text; return option; }));
}

function showTimeline() {
  const all = data.rows[Number(byId("row").value)].timelines, found = all.find((one) => one.which === byId("which").value) || all[0];
  byId("chart-timeline").hidden = !found;
  byId("said").textContent = found ? "" : "This row has no spans: it was not simulated op by op.";
  if (!found) return;
  byId("critical-label").hidden = !found.critical.includes(1);
  timeline.show(found, colours);
  byId("said").textContent = found.op.length.toLocaleString("en") + " bars" + (found.shown ? "; shown are " + found.shown : "") + ".";
  search();
}

function search() {
  if (!timeline.data) return;
  const count = timeline.search(byId("search").value);
  byId("matches").textContent = byId("search").value.trim() ? count.toLocaleString("en") + (count === 1 ? " match" : " matches") : "";
}

function showRow() {
  const i = Number(byId("row").value), all = data.rows[i].timelines, before = byId("which").value;
  fill(byId("which"), all.map((one) => [one.which, one.which]));
  if (all.some((one) => one.which === before)) byId("which").value = before;
  why(i);
  showTimeline();
  traffic(i);
  cluster(i);
  schedule(i);
}

function showModel() {
  const rows = rowsOf(data.models[Number(byId("model").value)]);
  fill(byId("row"), rows.map((i) => [i, data.runs[i].label]));
  const best = rows.reduce((a, b) => (data.runs[b].predicted.samples_per_s > data.runs[a].predicted.samples_per_s ? b : a));
  byId("row").value = best;
  speed(rows);
  goes(rows);
  showRow();
}

function showAll() {
  const row = byId("row").value;
  look();
  const key = (colour, name, outlined) => { const item = document.createElement("li"), box = document.createElement("i"); box.style[outlined ? "border" : "background"] = outlined ? "2px solid " + colour : colour; item.append(box, name); return item; };
  byId("keys").replaceChildren(...data.activities.map((one) => key(one.colour, one.name)), key(data.critical, "on the critical path", true));
  measured();
  showModel();
  if (row) { byId("row").value = row; showRow(); }
}

function tip(text, at, say) {
  const element = byId("tip");
  element.hidden = text === null;
  if (text === null) return;
  element.textContent = text;
  const box = element.getBoundingClientRect();
  element.style.left = Math.max(4, Math.min(at[0] + 14, innerWidth - box.width - 4)) + "px";
  element.style.top = (at[1] + 18 + box.height > innerHeight ? Math.max(4, at[1] - box.height - 10) : at[1] + 18) + "px";
  if (say) byId("said").textContent = text.replaceAll("\n", ", ");
}

look();
timeline = new Timeline(byId("chart-timeline"), { tip });
byId("model").addEventListener("change", showModel);
byId("row").addEventListener("change", showRow);
byId("which").addEventListener("change", showTimeline);
byId("search").addEventListener("input", search);
byId("search").addEventListener("keydown", (event) => { if (event.key === "Enter") timeline.goTo(event.shiftKey ? -1 : 1); });
byId("critical").addEventListener("change", (event) => { timeline.critical = event.target.checked; timeline.redraw(); });
for (const [id, act] of [["in", () => timeline.by(0.5)], ["out", () => timeline.by(2)], ["whole", () => timeline.zoom(0, 100)], ["next", () => timeline.goTo(1)], ["previous", () => timeline.goTo(-1)]])
  byId(id).addEventListener("click", () => timeline.data && act());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showAll);
let wide = innerWidth, waiting = 0;
addEventListener("resize", () => { if (innerWidth !== wide) { wide = innerWidth; clearTimeout(waiting); waiting = setTimeout(showAll, 120); } });
showAll();
