// Alarms: what they watch, what follows, how they are now and were.

import { useState } from "preact/hooks";
import { deleteAll } from "./actions.js";
import { ChangeDialog } from "./change.jsx";
import { AlarmChart } from "./charts.jsx";
import { bytes, nameOf, rate, span } from "./format.js";
import { useLive } from "./hooks.js";
import { List } from "./list.jsx";
import { Create, EventTable } from "./pages.jsx";
import { Badge, Confirm, Empty, Link, Page, Table, Time } from "./ui.jsx";
import { useWho } from "./who.js";

const count = (unit) => ({ unit, write: (n) => `${rate(n)}${unit}` });
const plain = (unit) => ({ unit, write: (n) => `${n} ${unit}` });
const memory = { unit: "bytes", write: bytes };

// What can be watched: in words, its unit, and how a threshold of it is written.
const METRICS = {
  cpu_percent: ["CPU in use", plain("%")], steal_percent: ["CPU time stolen", plain("%")],
  memory_used_bytes: ["memory that the guest uses", memory], memory_resident_bytes: ["memory of the host", memory],
  disk_read_bytes_per_s: ["disk reads", count("B/s")], disk_written_bytes_per_s: ["disk writes", count("B/s")],
  disk_reads_per_s: ["disk reads", count("per second")], disk_writes_per_s: ["disk writes", count("per second")],
  disk_latency_us: ["answer of the disk", plain("µs")],
  net_received_bytes_per_s: ["network received", count("B/s")], net_sent_bytes_per_s: ["network sent", count("B/s")],
  net_received_packets_per_s: ["network received", count("frames/s")], net_sent_packets_per_s: ["network sent", count("frames/s")],
  exits_per_s: ["exits of the guest", count("per second")], exit_latency_us: ["answer to an exit", plain("µs")],
};
const metricOf = (name) => METRICS[name] ?? [name, plain("")];
const metricText = (name) => { const [words, { unit }] = metricOf(name); return `${words[0].toUpperCase()}${words.slice(1)} (${unit})`; };

// "CPU in use above 90 % for 5 minutes"
function conditionOf({ metric, comparison = "above", threshold, for_s: seconds = 60 }) {
  const [words, { write }] = metricOf(metric);
  return `${words} ${comparison} ${threshold === undefined ? "..." : write(threshold)}${seconds > 0 ? ` for ${span(seconds)}` : ""}`;
}

const ACTION = { none: "nothing", stop: "it is stopped", reboot: "it is rebooted" };
const hostOf = (address) => { try { return new URL(address).host; } catch { return address; } };
const followsOf = ({ action = "none", webhook }) =>
  [action !== "none" && ACTION[action], webhook && `${hostOf(webhook)} is told`].filter(Boolean).join(", ") || "an event";

function watches(alarm, instance) {
  if (alarm.project !== instance.project) return false;
  if (alarm.instance) return alarm.instance === instance.id;
  const [name, ...value] = (alarm.tag ?? "").split("=");
  return instance.tags?.[name] === value.join("=");
}

function Watched({ alarm }) {
  const live = useLive();
  if (alarm.tag) return <>each with <code>{alarm.tag}</code></>;
  const instance = live.objects.instance.get(alarm.instance);
  return instance ? <Link to={`instances/${instance.id}/alarms`}>{nameOf(instance)}</Link> : <>{alarm.instance}, which is gone</>;
}

/* ---- forms ---- */

const PARTS = [
  { title: "What it is", names: ["name", "project_of"] },
  { title: "What it watches", names: ["instance", "tag"] },
  { title: "When", names: ["metric", "comparison", "threshold", "for_s"], isDense: true },
  { title: "What follows", names: ["action", "webhook"] },
];
const TITLES = { for_s: "For (seconds)", tag: "Tag, in place of an instance", action: "Done to the instance", webhook: "Address that is told" };
const METRIC_CHOICES = Object.keys(METRICS).map((value) => ({ value, text: metricText(value) }));

function Intro({ values }) {
  if (!values.metric) return null;
  return <p class="note" aria-live="polite">{conditionOf(values)}: then {followsOf(values)}.</p>;
}

function New({ instance, onClose }) {
  return <Create path="alarms" heading={instance ? `New alarm for ${nameOf(instance)}` : "New alarm"} sections={PARTS} titles={TITLES}
    project={instance?.project} initial={instance ? { instance: nameOf(instance) } : {}} choices={() => ({ metric: METRIC_CHOICES })}
    intro={(values) => <Intro values={values} />} onClose={onClose} />;
}

function Change({ alarm, onClose }) {
  return <ChangeDialog object={alarm} plural="alarms" sections={PARTS} titles={TITLES} onClose={onClose}
    choices={(live) => ({ metric: METRIC_CHOICES, instance: live.all("instance").filter((one) => one.project === alarm.project)
      .map((one) => ({ value: one.id, text: nameOf(one) })) })}
    intro={(values) => <Intro values={values} />} />;
}

/* ---- tables ---- */

// isFiring: of the one instance that is looked at, where it is one.
const columnsOf = (onChange, isFiring = (alarm) => alarm.state) => [
  { name: "name", title: "Name", of: (alarm) => <Link to={`alarms/${alarm.id}`}>{nameOf(alarm)}</Link>, sort: nameOf },
  { name: "state", title: "State", of: (alarm) => <Badge state={isFiring(alarm)} />, sort: isFiring },
  { name: "metric", title: "When", of: conditionOf, sort: conditionOf },
  { name: "instance", title: "Watches", of: (alarm) => <Watched alarm={alarm} /> },
  { name: "action", title: "What follows", of: followsOf, sort: followsOf },
  { name: "since", title: "Since", of: (alarm) => <Time at={alarm.since} />, sort: (alarm) => alarm.since ?? 0 },
  ...(onChange ? [{ name: "actions", title: "", of: (alarm) =>
    <button type="button" aria-label={`Change ${nameOf(alarm)}`} onClick={() => onChange(alarm)}>Change</button> }] : []),
];

export function Alarms() {
  const live = useLive();
  const { canChange } = useWho();
  const [changing, setChanging] = useState(null);
  return (
    <>
      <List heading="Alarms" plural="alarms" rows={live.all("alarm")} canDelete={canChange}
        create={canChange && ((onClose) => <New onClose={onClose} />)} columns={columnsOf(canChange && setChanging)}
        note={<p class="note">An alarm watches one instance, or each of its project that has a tag. What becomes of it is an event; it can stop or
          reboot the instance, and tell an address.</p>} />
      {changing && <Change alarm={changing} onClose={() => setChanging(null)} />}
    </>
  );
}

const historyOf = (live, alarms) => {
  const ids = new Set(alarms.map((alarm) => alarm.id));
  return live.all("event").filter((event) => ids.has(event.target)).sort((a, b) => (b.created ?? 0) - (a.created ?? 0)).slice(0, 200);
};

export function Alarm({ id }) {
  const live = useLive();
  const { canChange } = useWho();
  const [dialog, setDialog] = useState(null);
  const alarm = live.find("alarm", id);
  if (!alarm) return <Page title="Alarm"><Empty>There is no alarm {id}. <a href="#/alarms">All alarms</a></Empty></Page>;
  const firing = (alarm.firing ?? []).map((one) => live.objects.instance.get(one)).filter(Boolean);
  const shown = alarm.instance ? live.objects.instance.get(alarm.instance) : firing[0];
  const facts = [
    ["State", <><Badge state={alarm.state} /> since <Time at={alarm.since} /></>], ["When", conditionOf(alarm)],
    ["Watches", <Watched alarm={alarm} />], ["Done to the instance", ACTION[alarm.action]], ["Address that is told", alarm.webhook],
    ["In alarm", firing.length > 0 && firing.map((one, i) => <>{i > 0 && ", "}<Link to={`instances/${one.id}`}>{nameOf(one)}</Link></>)],
    ["Created", <Time at={alarm.created} />],
  ].filter(([, value]) => value);
  return (
    <Page title={nameOf(alarm)} actions={canChange && <>
      <button type="button" onClick={() => setDialog("change")}>Change</button>
      <button type="button" class="danger" onClick={() => setDialog("delete")}>Delete</button></>}>
      <dl class="facts">{facts.map(([name, value]) => <div key={name}><dt>{name}</dt><dd>{value}</dd></div>)}</dl>
      {shown && <AlarmChart key={`${alarm.metric}-${alarm.threshold}-${shown.id}`} alarm={alarm} instance={shown} />}
      <h2>What it did</h2>
      <EventTable events={historyOf(live, [alarm])} />
      {dialog === "change" && <Change alarm={alarm} onClose={() => setDialog(null)} />}
      {dialog === "delete" && <Confirm title="Delete alarm" verb="Delete" onClose={() => setDialog(null)}
        text={`${nameOf(alarm)} watches no more.`} onYes={() => { deleteAll("alarms", [alarm]); location.hash = "#/alarms"; }} />}
    </Page>
  );
}

// On an instance's page: those that watch it, by name or by tag.
export function AlarmsOf({ instance }) {
  const live = useLive();
  const { canChange } = useWho();
  const [dialog, setDialog] = useState(null);
  const alarms = live.all("alarm").filter((alarm) => watches(alarm, instance));
  const state = (alarm) => (alarm.firing?.includes(instance.id) ? "alarm" : instance.state !== "running" ? "no-data" : alarm.state === "alarm" ? "ok" : alarm.state);
  return (
    <>
      {canChange && <div class="actions bar"><button type="button" class="primary" onClick={() => setDialog("create")}>New alarm</button></div>}
      <Table label="Alarms" rows={alarms} empty="Nothing watches it." columns={columnsOf(canChange && setDialog, state)} />
      {alarms.length > 0 && <><h2>What they did</h2><EventTable events={historyOf(live, alarms)} /></>}
      {dialog === "create" && <New instance={instance} onClose={() => setDialog(null)} />}
      {dialog?.id && <Change alarm={dialog} onClose={() => setDialog(null)} />}
    </>
  );
}

// Those that are raised because of it.
export const alarmsIn = (live, instance) => live.all("alarm").filter((alarm) => alarm.firing?.includes(instance.id));
