// What an instance or the host does: now, in the last hour, in the last day.

import { useEffect, useRef, useState } from "preact/hooks";
import { get } from "./api.js";
import { nameOf } from "./format.js";
import { usePolled } from "./hooks.js";
import { Chart } from "./chart.jsx";
import { Empty } from "./ui.jsx";

const KEPT = 150; // samples: five minutes at one in two seconds
const HOUR = 3600;

const RANGES = [
  { name: "live", title: "Live" },
  { name: "hour", title: "Hour", seconds: HOUR, step: 10, every: 10 },
  { name: "day", title: "Day", seconds: 24 * HOUR, step: 240, every: 60 },
];

// Lines of a chart: a series of history with its factor, and how the monitor's counters give it.
const rateOf = (...names) => (before, now, seconds) =>
  names.reduce((total, name) => total + Math.max(0, (now[name] ?? 0) - (before[name] ?? 0)), 0) / seconds;
const percentOf = (name) => (before, now, seconds) =>
  Math.max(0, now[name] - before[name]) / seconds / 1e7 / (now["vcpu.count"] || 1);
const guestUses = (_, now) => (now["guest.total_bytes"] ? now["guest.total_bytes"] - now["guest.available_bytes"] : null);

const INSTANCE_CHARTS = [
  { title: "CPU", unit: " %", top: 100, lines: [
    { label: "in use", series: "cpu_percent", factor: 1, live: percentOf("vcpu.run_ns") },
    { label: "stolen", series: "steal_percent", factor: 1, live: percentOf("vcpu.steal_ns") }] },
  { title: "Memory", unit: " MiB", lines: [
    { label: "the guest uses", series: "memory_used_bytes", factor: 1 / 1048576, live: guestUses },
    { label: "of the host", series: "memory_resident_bytes", factor: 1 / 1048576, live: (_, now) => now["memory.resident_bytes"] }] },
  { title: "Disk", unit: " MB/s", lines: [
    { label: "read", series: "disk_read_bytes_per_s", factor: 1e-6, live: rateOf("disk.read_bytes") },
    { label: "written", series: "disk_written_bytes_per_s", factor: 1e-6, live: rateOf("disk.written_bytes") }] },
  { title: "Network", unit: " MB/s", lines: [
    { label: "received", series: "net_received_bytes_per_s", factor: 1e-6, live: rateOf("net.rx_bytes") },
    { label: "sent", series: "net_sent_bytes_per_s", factor: 1e-6, live: rateOf("net.tx_bytes") }] },
  { title: "Exits", unit: " k/s", lines: [
    { label: "exits", series: "exits_per_s", factor: 1e-3, live: rateOf("vcpu.pio", "vcpu.mmio", "vcpu.msr", "vcpu.other") }] },
  { title: "Answer to an exit", unit: " µs", lines: [
    { label: "on average", series: "exit_latency_us", factor: 1, live: (before, now) => {
      const names = ["vcpu.pio", "vcpu.mmio", "vcpu.msr", "vcpu.other"];
      const count = rateOf(...names)(before, now, 1);
      return count > 0 ? rateOf(...names.map((name) => `${name}_ns`))(before, now, 1) / count / 1e3 : null;
    } }] },
];

// Series that have no chart of their own on an instance's page.
const rare = (title, unit, series, factor) => ({ title, unit, lines: [{ label: "now", series, factor }] });
const RARE_CHARTS = {
  disk_reads_per_s: rare("Disk reads", " /s", "disk_reads_per_s", 1), disk_writes_per_s: rare("Disk writes", " /s", "disk_writes_per_s", 1),
  disk_latency_us: rare("Answer of the disk", " µs", "disk_latency_us", 1),
  net_received_packets_per_s: rare("Frames received", " /s", "net_received_packets_per_s", 1),
  net_sent_packets_per_s: rare("Frames sent", " /s", "net_sent_packets_per_s", 1),
};

const HOST_CHARTS = [
  { title: "Host CPU", unit: " %", top: 100, lines: [
    { label: "in use", series: "cpu_percent", factor: 1 }, { label: "stolen", series: "steal_percent", factor: 1 }] },
  { title: "Host memory", unit: " GiB", lines: [{ label: "in use", series: "memory_used_bytes", factor: 1 / 1073741824 }] },
  { title: "Host disk", unit: " MB/s", lines: [
    { label: "read", series: "disk_read_bytes_per_s", factor: 1e-6 }, { label: "written", series: "disk_written_bytes_per_s", factor: 1e-6 }] },
  { title: "Host network", unit: " MB/s", lines: [
    { label: "received", series: "net_received_bytes_per_s", factor: 1e-6 }, { label: "sent", series: "net_sent_bytes_per_s", factor: 1e-6 }] },
];

export function RangeSwitch({ ranges, range, label = "Time of the charts", onChange }) {
  return (
    <div class="ranges" role="group" aria-label={label}>
      {ranges.map(({ name, title }) =>
        <button key={name} type="button" aria-pressed={range === name} onClick={() => onChange(name)}>{title}</button>)}
    </div>
  );
}

// The monitor's counters, one answer in two seconds.
function useSamples(instance, isWanted) {
  const samples = useRef([]);
  const [, setCount] = useState(0);
  useEffect(() => {
    samples.current = [];
    if (!isWanted) return undefined;
    const poll = async () => {
      if (document.visibilityState === "hidden") return;
      const answer = await get(`/v1/instances/${instance.id}/statistics`).catch(() => null);
      if (answer) {
        samples.current = [...samples.current, { ...answer, at: Date.now() / 1000 }].slice(-KEPT);
        setCount((count) => count + 1);
      }
    };
    poll();
    const timer = setInterval(poll, 2000);
    return () => clearInterval(timer);
  }, [instance.id, isWanted]);
  return samples.current;
}

function Live({ instance }) {
  const samples = useSamples(instance, instance.state === "running");
  if (instance.state !== "running") return <Empty>The live charts begin when the instance runs; hour and day have what was.</Empty>;
  const times = samples.slice(1).map((sample) => sample.at);
  const values = (line) => samples.slice(1).map((now, i) => {
    const value = line.live(samples[i], now, Math.max(now.uptime_ns - samples[i].uptime_ns, 1) / 1e9);
    return value === null || value === undefined ? null : value * line.factor;
  });
  return <Charts charts={INSTANCE_CHARTS} times={times} values={values} />;
}

function History({ path, range, charts }) {
  const { seconds, step, every } = RANGES.find(({ name }) => name === range);
  const history = usePolled(() =>
    get(`${path}?since=${Math.floor(Date.now() / 1000) - seconds}&step=${step}`), every, [path, range]);
  if (!history) return null;
  const any = Object.values(history.series)[0] ?? [];
  const times = any.map((_, i) => history.since + i * history.step);
  const values = (line) => history.series[line.series].map((value) =>
    (line.constant !== undefined ? line.constant * line.factor : value === null ? null : value * line.factor));
  return <Charts charts={charts} times={times} values={values} />;
}

export function Charts({ charts, times, values }) {
  return (
    <div class="charts">
      {charts.map(({ title, unit, top, lines }) =>
        <Chart key={title} title={title} unit={unit} top={top} times={times}
          series={lines.map((line) => ({ label: line.label, values: values(line) }))} />)}
    </div>
  );
}

export function InstanceCharts({ instance }) {
  const [range, setRange] = useState("live");
  return (
    <section aria-label="Charts">
      <RangeSwitch ranges={RANGES} range={range} onChange={setRange} />
      {range === "live" ? <Live key="live" instance={instance} />
        : <History key={range} path={`/v1/instances/${instance.id}/history`} range={range} charts={INSTANCE_CHARTS} />}
    </section>
  );
}

// What an alarm watches of an instance, with the line that it has not to pass.
export function AlarmChart({ alarm, instance }) {
  const [range, setRange] = useState("hour");
  const chart = INSTANCE_CHARTS.find(({ lines }) => lines.some((line) => line.series === alarm.metric)) ?? RARE_CHARTS[alarm.metric];
  const line = chart.lines.find(({ series }) => series === alarm.metric);
  const lines = [line, { label: "threshold", series: alarm.metric, factor: line.factor, constant: alarm.threshold }];
  return (
    <section aria-label={`What it watches of ${nameOf(instance)}`}>
      <RangeSwitch ranges={RANGES.slice(1)} range={range} onChange={setRange} />
      <History key={range} path={`/v1/instances/${instance.id}/history`} range={range}
        charts={[{ ...chart, title: `${chart.title} of ${nameOf(instance)}`, lines }]} />
    </section>
  );
}

export function HostCharts() {
  const [range, setRange] = useState("hour");
  return (
    <section aria-label="Charts of the host">
      <RangeSwitch ranges={RANGES.slice(1)} range={range} onChange={setRange} />
      <History key={range} path="/v1/host/history" range={range} charts={HOST_CHARTS} />
    </section>
  );
}
