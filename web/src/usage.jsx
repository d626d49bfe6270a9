// What projects used: over time, by project, and by each instance, volume and snapshot.

import { useState } from "preact/hooks";
import { get } from "./api.js";
import { useLive, usePolled } from "./hooks.js";
import { bytes, nameOf } from "./format.js";
import { Charts, RangeSwitch } from "./charts.jsx";
import { Empty, Filter, Link, matching, Page, Table } from "./ui.jsx";
import { useWho } from "./who.js";

const HOUR = 3600;
const DAY = 24 * HOUR;
const RANGES = [
  { name: "day", title: "Day", seconds: DAY, by: "hour", step: HOUR },
  { name: "month", title: "30 days", seconds: 30 * DAY, by: "day", step: DAY },
  { name: "year", title: "Year", seconds: 365 * DAY, by: "day", step: DAY },
];
const VIEWS = [{ name: "project", title: "By project" }, { name: "instance", title: "By object" }];

const CHARTS = [
  { title: "vCPUs", unit: " hours", field: "vcpu_hours", factor: 1, top: 0.01 },
  { title: "Memory", unit: " GiB hours", field: "memory_gib_hours", factor: 1, top: 0.01 },
  { title: "Storage", unit: " GiB hours", field: "storage_gib_hours", factor: 1, top: 0.01 },
  { title: "Network", unit: " MB", field: "network_bytes", factor: 1e-6, top: 1 },
];

// Whole steps of it, the one that goes on among them.
const sinceOf = ({ seconds, step }) => (Math.floor(Date.now() / 1000 / step) + 1) * step - seconds;
const queryOf = (range, by, project) => `/v1/usage?since=${sinceOf(range)}&by=${by}${project ? `&project=${encodeURIComponent(project)}` : ""}`;

const useUsage = (range, by, project) => usePolled(() => get(queryOf(range, by, project)), 60, [range.name, by, project]);

function OverTime({ range, project }) {
  const usage = useUsage(range, range.by, project);
  if (!usage) return null;
  const since = sinceOf(range);
  const times = Array.from({ length: range.seconds / range.step }, (_, i) => since + i * range.step);
  const sums = new Map(times.map((time) => [time, {}]));
  for (const item of usage.items) {
    const sum = sums.get(item.time);
    if (sum) for (const { field } of CHARTS) sum[field] = (sum[field] ?? 0) + item[field];
  }
  const values = ({ field, factor }) => times.map((time) => (sums.get(time)[field] ?? 0) * factor);
  return <Charts times={times} values={values} charts={CHARTS.map((chart) => ({ ...chart, lines: [{ label: chart.title, ...chart }] }))} />;
}

const hours = (number) => (number === 0 ? "0" : number < 0.01 ? "< 0.01" : String(+number.toFixed(number < 10 ? 2 : 1)));

function What({ item }) {
  const live = useLive();
  const instance = live.objects.instance.get(item.id);
  if (instance) return <Link to={`instances/${item.id}`}>{nameOf(instance)}</Link>;
  return <>{item.name || item.id}{!live.objects.volume.has(item.id) && !live.objects.snapshot.has(item.id) && <span class="muted"> (gone)</span>}</>;
}

export function Usage() {
  const live = useLive();
  const who = useWho();
  const [rangeName, setRange] = useState("day");
  const [by, setBy] = useState("project");
  const [chosen, setChosen] = useState("");
  const [filter, setFilter] = useState("");
  const range = RANGES.find(({ name }) => name === rangeName);
  const project = who.project || chosen;
  const usage = useUsage(range, by, project);
  const sum = (field, title, write) => ({ name: field, title, of: (item) => write(item[field]), sort: (item) => item[field] });
  const rows = matching((usage?.items ?? []).map((item) => ({ ...item, id: item.id ?? item.project })), filter);
  return (
    <Page title="Usage" actions={<>
      <Filter label="Filter usage" value={filter} onInput={setFilter} />
      <a class="button" href={`${queryOf(range, by, project)}&format=csv`} download={`usage-by-${by}.csv`}>Download CSV</a></>}>
      <p class="note">Virtual CPUs and memory count while an instance runs, storage from creation to deletion; what is gone stays counted. Days are those of UTC.</p>
      <div class="actions">
        <RangeSwitch ranges={RANGES} range={rangeName} onChange={setRange} />
        {!who.project && live.all("project").length > 1 && (
          <select aria-label="Whose usage" value={chosen} onChange={(event) => setChosen(event.target.value)}>
            <option value="">All projects</option>
            {live.all("project").map((one) => <option key={one.id} value={one.id}>{nameOf(one)}</option>)}
          </select>)}
      </div>
      <OverTime key={`${rangeName} ${project}`} range={range} project={project} />
      <RangeSwitch label="What the table shows" ranges={VIEWS} range={by} onChange={setBy} />
      {usage ? <Table label="Usage" rows={rows} empty={filter ? "Nothing matches the filter." : "Nothing was used."}
        columns={[
          ...(by === "instance" ? [{ name: "name", title: "Name", of: (item) => <What item={item} />, sort: (item) => item.name }] : []),
          { name: "project_name", title: "Project", of: (item) => item.project_name || item.project, sort: (item) => item.project_name },
          sum("vcpu_hours", "vCPU hours", hours), sum("memory_gib_hours", "Memory (GiB hours)", hours),
          sum("storage_gib_hours", "Storage (GiB hours)", hours), sum("network_bytes", "Network", bytes),
        ]} /> : <Empty>Loading ...</Empty>}
    </Page>
  );
}
