// Charts by uPlot in the colours of the page, drawn again when the colours or the width change.
import { html, useEffect, useRef } from "./html.js";

let loading = null;
function load() {
  if (!loading) {
    const sheet = Object.assign(document.createElement("link"), { rel: "stylesheet", href: "/web/vendor/uplot.css" });
    document.head.append(sheet);
    loading = import("../vendor/uplot.js").then((module) => module.default);
  }
  return loading;
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// `x` are unix seconds, shown in local time or as UTC; `series` are {label, values, shown, colour: "accent", isBar, unit}: the legend has `shown` if
// given, else `values`. `label` and `summary` are read to those who do not see it.
export function Chart({ x, series, height = 180, label, summary = "", isUtc = false }) {
  const box = useRef(null);
  const plot = useRef(null);
  const shape = JSON.stringify(series.map(({ values, ...rest }) => rest));
  const data = [x, ...series.map(({ values }) => values)];
  useEffect(() => {
    let isGone = false;
    let observer = null;
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const draw = async () => {
      const UPlot = await load();
      if (isGone || !box.current) return;
      plot.current?.destroy();
      plot.current = new UPlot(options(UPlot, { series, x, isUtc, width: box.current.clientWidth, height }), data, box.current);
    };
    draw().then(() => {
      if (isGone) return;
      observer = new ResizeObserver(() => box.current && plot.current?.setSize({ width: box.current.clientWidth, height }));
      observer.observe(box.current);
    });
    dark.addEventListener("change", draw);
    return () => {
      isGone = true;
      observer?.disconnect();
      dark.removeEventListener("change", draw);
      plot.current?.destroy();
      plot.current = null;
    };
  }, [shape, height]);
  useEffect(() => plot.current?.setData(data), [x, ...data]);
  return html`<figure class="chart" role="img" aria-label=${`${label}. ${summary}`}><div ref=${box} style=${{ minHeight: `${height}px` }}></div></figure>`;
}

function options(UPlot, { series, x, isUtc, width, height }) {
  const axis = { stroke: colour("muted"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line"), width: 1 } };
  const bars = UPlot.paths.bars({ size: [0.7, 60] });
  const half = series.some(({ isBar }) => isBar) ? (x.length > 1 ? x[1] - x[0] : 86400) / 2 : 0; // whole bars at both ends
  return {
    width,
    height,
    legend: { show: series.length > 1 },
    cursor: { points: { size: 6 } },
    ...(isUtc && { tzDate: (at) => UPlot.tzDate(new Date(1000 * at), "Etc/UTC") }),
    scales: {
      x: half ? { range: (_, low, high) => [low - half, high + half] } : {},
      y: { range: (_, low, high) => [Math.min(0, low), high > 0 ? 1.08 * high : 1] },
    },
    axes: [axis, { ...axis, size: 56, values: (_, ticks) => ticks.map((tick) => Intl.NumberFormat("en", { notation: "compact" }).format(tick)) }],
    series: [
      isUtc ? { label: "Day", value: (_, at) => (at ? new Date(1000 * at).toISOString().slice(0, 10) : "–") } : {},
      ...series.map(({ label, shown, colour: name = "accent", isBar = false }) => ({
        label,
        ...(shown && { value: (_, value, __, at) => (at === null || at === undefined ? "–" : Intl.NumberFormat("en").format(shown[at])) }),
        stroke: colour(name),
        width: 2,
        fill: isBar ? colour(name) : undefined,
        paths: isBar ? bars : undefined,
        points: { show: false },
      })),
    ],
  };
}
