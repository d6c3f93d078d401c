"use strict";
/* A timeline on canvas: lanes of bars over time. Each lane is one path for each activity, so that ten thousand bars are
   few shapes; bars that are closer than half a pixel are drawn as one. What is under the pointer is found in the data. */
const LANE = 20, NAME_FROM = 46;

const Bars = echarts.graphic.extendShape({
  shape: { bars: null },
  buildPath(path, shape) {
    for (let i = 0; i < shape.bars.length; i += 4) path.rect(shape.bars[i], shape.bars[i + 1], shape.bars[i + 2], shape.bars[i + 3]);
  },
});
echarts.graphic.registerShape("bars", Bars);

class Timeline {
  constructor(element, hooks) {
    this.element = element;
    this.hooks = hooks;
    this.critical = true;
    this.query = "";
    element.addEventListener("keydown", (event) => this.key(event));
    this.at = -1;
  }

  /* Make the chart, or give it the size that its element has by now: what was never painted cannot be resized. */
  mount() {
    if (this.chart) {
      this.chart.getZr().flush();
      this.chart.resize();
      return;
    }
    this.chart = echarts.init(this.element, null, { renderer: "canvas" });
    this.outline = new echarts.graphic.Rect({ silent: true, invisible: true, z: 50, style: { fill: "none", lineWidth: 2 } });
    this.chart.getZr().add(this.outline);
    this.chart.getZr().on("mousemove", (event) => this.hover(event));
    this.chart.getZr().on("globalout", () => this.point(-1));
    this.chart.on("datazoom", () => this.point(this.at));
  }

  show(data, colours) {
    this.data = data;
    this.colours = colours;
    const lanes = data.lanes.length;
    this.first = new Array(lanes + 1).fill(data.lane.length);
    for (let i = data.lane.length - 1; i >= 0; i--) this.first[data.lane[i]] = i;
    for (let k = lanes - 1; k >= 0; k--) this.first[k] = Math.min(this.first[k], this.first[k + 1]);
    this.matchesOf = data.ops.map(() => true);
    this.search(this.query, false);
    const height = Math.min(lanes * LANE, 560);
    this.element.style.height = height + 84 + "px";
    this.mount();
    const wide = this.element.clientWidth > 600;
    const fits = lanes * LANE <= height;
    this.grid = { left: wide ? 150 : 92, right: fits ? 12 : 34, top: 6, bottom: 72 };
    const slider = { borderColor: colours.line, textStyle: { color: colours.soft }, filterMode: "none", brushSelect: false };
    const zooms = [
      { id: "time", type: "inside", xAxisIndex: 0, filterMode: "none", zoomOnMouseWheel: "ctrl", moveOnMouseMove: true, minSpan: 0.01 },
      { ...slider, id: "time-slider", type: "slider", xAxisIndex: 0, height: 22, bottom: 6, showDataShadow: false,
        labelFormatter: (value) => milliseconds(value) },
    ];
    if (!fits) {
      const end = (100 * height) / (lanes * LANE);
      zooms.push(
        { id: "lanes", type: "inside", yAxisIndex: 0, filterMode: "none", start: 0, end, zoomLock: true, zoomOnMouseWheel: false,
          moveOnMouseMove: false, moveOnMouseWheel: "shift" },
        { ...slider, id: "lanes-slider", type: "slider", yAxisIndex: 0, width: 14, right: 4, start: 0, end, zoomLock: true,
          showDetail: false, showDataShadow: false });
    }
    this.chart.setOption({
      animation: false,
      grid: this.grid,
      xAxis: { type: "value", min: 0, max: data.length / 1e6, name: "ms", nameLocation: "middle", nameGap: 22, axisLabel: { color: colours.soft, hideOverlap: true, showMinLabel: false, showMaxLabel: false },
        nameTextStyle: { color: colours.soft }, splitLine: { lineStyle: { color: colours.line, opacity: 0.6 } },
        axisLine: { lineStyle: { color: colours.line } } },
      yAxis: { type: "category", inverse: true, data: data.lanes.map((_, i) => i), axisTick: { show: false },
        axisLine: { lineStyle: { color: colours.line } },
        axisLabel: { color: colours.soft, interval: 0, fontSize: 11, width: this.grid.left - 10, overflow: "truncate", formatter: (i) => this.name(Number(i), wide) } },
      dataZoom: zooms,
      series: [{ type: "custom", clip: true, silent: true, renderItem: (params, api) => this.lane(params, api),
        encode: { x: 1, y: 0 }, data: data.lanes.map((_, i) => [i, 0]) }],
    }, { notMerge: true });
    this.point(-1);
    if (data.length > 5 * data.iteration) this.zoom(0, (300 * data.iteration) / data.length);
  }

  name(lane, wide) {
    const [rank, size, name] = this.data.lanes[lane];
    const fresh = lane === 0 || this.data.lanes[lane - 1][0] !== rank;
    if (!fresh) return name;
    return (wide ? "rank " : "r") + rank + (size > 1 ? " ×" + size : "") + " · " + name;
  }

  /* The bars of a lane within the window, as shapes. */
  lane(params, api) {
    const data = this.data, k = api.value(0), box = params.coordSys;
    const y = api.coord([0, k])[1], tall = api.size([0, 1])[1];
    if (y + tall / 2 < box.y || y - tall / 2 > box.y + box.height) return null;
    const height = Math.max(3, Math.min(14, tall - 4)), top = y - height / 2;
    const zero = api.coord([0, k])[0], scale = (api.coord([1, k])[0] - zero) / 1e6;
    const left = box.x, right = box.x + box.width;
    const begin = (left - zero) / scale, end = (right - zero) / scale;
    const groups = new Map(), names = [];
    const put = (key, x, w) => {
      let bars = groups.get(key);
      if (!bars) groups.set(key, (bars = []));
      const n = bars.length;
      if (n && x < bars[n - 4] + bars[n - 2] + 0.5 && w < 1) bars[n - 2] = Math.max(bars[n - 2], x + w - bars[n - 4]);
      else bars.push(x, top, Math.max(w, 0.5), height);
    };
    for (let i = this.from(k, begin); i < this.first[k + 1] && data.start[i] < end; i++) {
      const x = Math.max(zero + data.start[i] * scale, left - 2), x2 = Math.min(zero + data.end[i] * scale, right + 2);
      const fits = this.matchesOf[data.op[i]] || !this.query;
      put((fits ? "" : "faint ") + data.activity[i], x, x2 - x);
      if (this.critical && data.critical[i]) put("critical", x, x2 - x);
      if (fits && x2 - x > NAME_FROM && data.ops[data.op[i]]) names.push([x, x2, data.ops[data.op[i]], data.activity[i]]);
    }
    const children = [];
    for (const [key, bars] of groups) {
      if (key === "critical") continue;
      const faint = key.startsWith("faint ");
      children.push({ type: "bars", shape: { bars }, style: { fill: this.colours.activities[Number(key.replace("faint ", ""))], opacity: faint ? 0.2 : 1 }, z2: 1 });
    }
    if (groups.has("critical"))
      children.push({ type: "bars", shape: { bars: groups.get("critical") }, style: { fill: "none", stroke: this.colours.critical, lineWidth: 1.5 }, z2: 3 });
    for (const [x, x2, text, activity] of names)
      children.push({ type: "text", z2: 4, style: { text, x: x + 4, y, width: x2 - x - 8, overflow: "truncate", ellipsis: "…",
        verticalAlign: "middle", fontSize: 10, fill: activity === 0 ? "#ffffff" : "#111111" } });
    return { type: "group", children };
  }

  /* The first bar of a lane that ends after an instant; bars of a lane follow each other. */
  from(lane, instant) {
    let low = this.first[lane], high = this.first[lane + 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.data.end[middle] <= instant) low = middle + 1; else high = middle;
    }
    return low;
  }

  hover(event) {
    if (!this.data || !this.chart.containPixel({ gridIndex: 0 }, [event.offsetX, event.offsetY])) return this.point(-1);
    const [ms, lane] = this.chart.convertFromPixel({ gridIndex: 0 }, [event.offsetX, event.offsetY]);
    const slack = 2 * Math.abs(this.chart.convertFromPixel({ gridIndex: 0 }, [event.offsetX + 1, event.offsetY])[0] - ms) * 1e6;
    const i = this.from(lane, ms * 1e6 - slack);
    this.point(i < this.first[lane + 1] && this.data.start[i] <= ms * 1e6 + slack ? i : -1, event);
  }

  /* Outline a bar and say what it is; -1 is none. */
  point(i, event) {
    this.at = i;
    const data = this.data;
    if (!data || i < 0) {
      this.outline.attr({ invisible: true });
      this.hooks.tip(null);
      return;
    }
    const lane = data.lane[i], at = (ns) => this.chart.convertToPixel({ gridIndex: 0 }, [ns / 1e6, lane]);
    const [x, y] = at(data.start[i]), x2 = at(data.end[i])[0];
    const box = this.element.getBoundingClientRect();
    const left = Math.max(x, this.grid.left), right = Math.min(x2, box.width - this.grid.right);
    this.outline.attr({ invisible: right < left || y < 0 || y > box.height - this.grid.bottom, shape: { x: left - 1, y: y - 8, width: Math.max(right - left, 1) + 2, height: 16 },
      style: { stroke: this.colours.text, fill: "none", lineWidth: 2 } });
    this.hooks.tip(this.words(i), event ? [event.event.clientX, event.event.clientY] : [box.left + left, box.top + y + 12], !event);
  }

  words(i) {
    const data = this.data, [rank, size] = data.lanes[data.lane[i]], op = data.ops[data.op[i]];
    const span = milliseconds((data.end[i] - data.start[i]) / 1e6) + ", from " + milliseconds(data.start[i] / 1e6) + " to " + milliseconds(data.end[i] / 1e6);
    const where = "rank " + rank + (size > 1 ? " (" + size + " like it)" : "");
    if (!op) return "waiting\n" + where + "\n" + span;
    const moved = data.nbytes[i] ? "\n" + bytes(data.nbytes[i]) : "";
    const path = data.critical[i] ? "\non the critical path" : "";
    return op + "\n" + where + ", iteration " + data.number[i] + ", " + this.colours.names[data.activity[i]] + "\n" + span + moved + path;
  }

  window() {
    const option = this.chart.getOption().dataZoom.find((zoom) => zoom.id === "time");
    return [option.start, option.end];
  }

  zoom(start, end) {
    const span = Math.min(100, Math.max(end - start, 0.01));
    const from = Math.min(Math.max(0, start), 100 - span);
    this.chart.dispatchAction({ type: "dataZoom", dataZoomId: "time", start: from, end: from + span });
  }

  by(factor) {
    const [start, end] = this.window(), middle = (start + end) / 2, half = ((end - start) * factor) / 2;
    this.zoom(middle - half, middle + half);
  }

  move(share) {
    const [start, end] = this.window();
    this.zoom(start + share * (end - start), end + share * (end - start));
  }

  scroll(lanes) {
    const zoom = this.chart.getOption().dataZoom.find((one) => one.id === "lanes");
    if (!zoom) return;
    const span = zoom.end - zoom.start, start = Math.min(100 - span, Math.max(0, zoom.start + (100 * lanes) / this.data.lanes.length));
    this.chart.dispatchAction({ type: "dataZoom", dataZoomId: "lanes", start, end: start + span });
  }

  redraw() {
    this.chart.setOption({ series: [{ data: this.data.lanes.map((_, i) => [i, 0]) }] });
  }

  search(text, redraw = true) {
    this.query = text.trim().toLowerCase();
    this.matchesOf = this.data.ops.map((op) => op !== "" && op.toLowerCase().includes(this.query));
    this.matches = [];
    if (this.query) for (let i = 0; i < this.data.op.length; i++) if (this.matchesOf[this.data.op[i]]) this.matches.push(i);
    this.matches.sort((a, b) => this.data.start[a] - this.data.start[b] || a - b);
    this.match = -1;
    if (redraw) this.redraw();
    return this.matches.length;
  }

  goTo(step) {
    if (!this.matches.length) return;
    this.match = (this.match + step + this.matches.length) % this.matches.length;
    this.see(this.matches[this.match]);
  }

  /* Bring a bar into view, at the zoom that there is unless it is too small to be seen. */
  see(i) {
    const data = this.data, whole = data.length, [start, end] = this.window();
    const long = (100 * (data.end[i] - data.start[i])) / whole, middle = (50 * (data.end[i] + data.start[i])) / whole;
    const span = Math.min(end - start, Math.max(12 * long, 0.02));
    if (middle < start || middle > end || span < (end - start) / 4) this.zoom(middle - span / 2, middle + span / 2);
    const lanes = this.chart.getOption().dataZoom.find((zoom) => zoom.id === "lanes");
    if (lanes) {
      const place = (100 * (data.lane[i] + 0.5)) / data.lanes.length;
      if (place < lanes.start || place > lanes.end) this.scroll(((place - (lanes.start + lanes.end) / 2) * data.lanes.length) / 100);
    }
    this.point(i);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { ArrowLeft: () => this.move(-0.2), ArrowRight: () => this.move(0.2), ArrowUp: () => this.scroll(-3), ArrowDown: () => this.scroll(3),
      "+": () => this.by(0.5), "=": () => this.by(0.5), "-": () => this.by(2), 0: () => this.zoom(0, 100), n: () => this.goTo(1), p: () => this.goTo(-1),
      "]": () => this.see(Math.min(this.at + 1, this.data.op.length - 1)), "[": () => this.see(Math.max(this.at - 1, 0)), Escape: () => this.point(-1) }[event.key];
    if (!step) return;
    event.preventDefault();
    step();
  }
}

function milliseconds(value) {
  const size = Math.abs(value);
  if (size >= 1000) return (value / 1000).toPrecision(4) + " s";
  return size >= 1 || size === 0 ? Number(value.toPrecision(5)) + " ms" : Number((value * 1000).toPrecision(4)) + " µs";
}

function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let k = 0;
  while (value >= 1000 && k < units.length - 1) { value /= 1000; k++; }
  return Number(value.toPrecision(4)) + " " + units[k];
}
