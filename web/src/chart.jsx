// A line over time.

import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";

const SHORTEST = 60; // seconds that the axis shows, however few values there are

const rangeOf = ({ data: [times] }) => {
  const end = times.at(-1) ?? Date.now() / 1000;
  return [Math.min(times[0] ?? end, end - SHORTEST), end];
};

export function Chart({ title, unit, top = 1, times, series }) {
  const place = useRef();
  const plot = useRef();
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // Before painting, and undone before the place is gone: the observer must not see it without.
  useLayoutEffect(() => {
    const lines = ["--accent", "--good", "--warn"];
    const options = {
      title: `${title} (${unit.trim()})`, width: Math.max(240, place.current.clientWidth), height: 180, legend: { show: series.length > 1 },
      cursor: { drag: { x: false, y: false } },
      axes: [
        { stroke: () => color("--muted"), grid: { stroke: () => color("--line") } },
        { stroke: () => color("--muted"), grid: { stroke: () => color("--line") }, size: 55 },
      ],
      scales: { x: { range: rangeOf }, y: { range: (_, low, high) => [Math.min(0, low ?? 0), Math.max((high ?? 0) * 1.1, top)] } },
      series: [{}, ...series.map((line, i) => ({ label: line.label, stroke: () => color(lines[i]), width: 2, points: { show: false } }))],
    };
    plot.current = new uPlot(options, [times, ...series.map((line) => line.values)], place.current);
    const resized = new ResizeObserver(() =>
      plot.current.setSize({ width: Math.max(240, place.current.clientWidth), height: 180 }));
    resized.observe(place.current);
    const themed = new MutationObserver(() => plot.current.redraw(false));
    themed.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
    return () => { resized.disconnect(); themed.disconnect(); plot.current.destroy(); };
  }, []);
  useEffect(() => { plot.current?.setData([times, ...series.map((line) => line.values)]); });
  const last = series[0]?.values.findLast((value) => value !== null && value !== undefined);
  return (
    <figure class="chart" aria-label={`${title}: ${last === undefined ? "no value yet" : `${last.toFixed(1)}${unit}`}`}>
      <div ref={place} />
    </figure>
  );
}
