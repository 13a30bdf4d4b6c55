// The two charts of a camera: bitrates stacked over time, and latency percentiles. uPlot draws them.

export const STREAMS = [["video", "video"], ["semantic", "semantic"], ["sei", "SEI"], ["overhead", "MQTT + TCP/IP"]];
export const PERCENTILES = [["p50", "p50"], ["p95", "p95"], ["p99", "p99"]];
const HEIGHT = 150;
const MAX_POINTS = 300;

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function options(width, series, range) {
  const axis = { stroke: colour("faint"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
  return {
    width, height: HEIGHT, series: [{}, ...series], legend: { show: false }, cursor: { y: false, points: { show: false } },
    padding: [6, 26, 0, 0],
    scales: { x: { time: true }, y: { range } },
    axes: [{ ...axis, size: 24, space: 90, values: (_plot, times) => times.map(clock) }, { ...axis, size: 46, space: 28 }],
  };
}

const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB");
const fromZero = (_plot, _low, high) => [0, Math.max(high || 0, 1) * 1.08];

export class Charts {
  constructor(rates, latencies) {
    this.places = [rates, latencies];
    this.points = [];
    this.plots = null;
    this.watch = new ResizeObserver(() => this.resize());
    this.watch.observe(rates);
    this.watch.observe(latencies);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.rebuild());
  }

  // Semantics come in bursts, one message a GOP: what a stream costs is its mean over some seconds.
  mean(name, seconds) {
    const since = Date.now() / 1000 - seconds;
    const values = this.points.filter((point) => point.t >= since && point[name] != null).map((point) => point[name]);
    return values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
  }

  seed(points) { this.points = [...points, ...this.points].slice(-MAX_POINTS); this.draw(); }

  add(point) { this.points.push(point); if (this.points.length > MAX_POINTS) this.points.shift(); this.draw(); }

  data() {
    const times = this.points.map((point) => point.t);
    // Stacked from the bottom: video, semantic, SEI, overhead. The highest sum is drawn first and covered by the others.
    const sums = STREAMS.map((_, top) => this.points.map((point) => {
      const parts = STREAMS.slice(0, top + 1).map(([name]) => point[name]);
      return parts.some((part) => part == null) ? null : parts.reduce((a, b) => a + b, 0);
    }));
    return [[times, ...sums.reverse()], [times, ...PERCENTILES.map(([name]) => this.points.map((point) => point[name] ?? null))]];
  }

  build() {
    const [rates, latencies] = this.data();
    const areas = [...STREAMS].reverse().map(([name]) => ({ stroke: colour(name), fill: colour(name), width: 1, points: { show: false } }));
    const lines = PERCENTILES.map(([name]) => ({ stroke: colour(name), width: 1.6, points: { show: false } }));
    this.plots = [
      new uPlot(options(this.places[0].clientWidth, areas, fromZero), rates, this.places[0]),
      new uPlot(options(this.places[1].clientWidth, lines, fromZero), latencies, this.places[1]),
    ];
  }

  rebuild() {
    this.plots?.forEach((plot) => plot.destroy());
    this.plots = null;
    this.draw();
  }

  draw() {
    if (!this.places[0].clientWidth) return; // the camera is folded away
    if (!this.plots) return this.build();
    this.data().forEach((data, index) => this.plots[index].setData(data));
  }

  resize() {
    if (!this.plots) return this.draw();
    this.plots.forEach((plot, index) => {
      const width = this.places[index].clientWidth;
      if (width && width !== plot.width) plot.setSize({ width, height: HEIGHT });
    });
  }
}
