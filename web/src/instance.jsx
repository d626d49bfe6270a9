// One instance: facts, actions, charts, console, events.

import { useEffect, useState } from "preact/hooks";
import { AlarmsOf, alarmsIn } from "./alarms.jsx";
import { ChangeDialog } from "./change.jsx";
import { useLive } from "./hooks.js";
import { ACTIONS, actOn, canDo, deleteAll } from "./actions.js";
import { creditsFact, limitsOf, Resize, RESIZABLE, sizeFact } from "./limits.jsx";
import { address, EventTable, nicsFor, sizes } from "./pages.jsx";
import { nameOf, size, tags } from "./format.js";
import { attempt, Badge, Confirm, Empty, Link, Page, Time, title } from "./ui.jsx";
import { InstanceCharts } from "./charts.jsx";
import { SnapshotsOf } from "./snapshots.jsx";
import { addressTitle, cardName, NetworkOf, useNetworks } from "./nics.jsx";
import { StorageOf } from "./volumes.jsx";
import { Console } from "./terminal.jsx";
import { useWho } from "./who.js";
import { get } from "./api.js";

function Facts({ instance }) {
  const live = useLive();
  const nic = live.find("nic", instance.nic);
  const raised = alarmsIn(live, instance);
  const facts = [
    ["Id", <code>{instance.id}</code>], ["State", <Badge state={instance.state} />],
    ["In alarm", raised.length > 0 && raised.map((alarm, i) => <>{i > 0 && ", "}<Link to={`alarms/${alarm.id}`}>{nameOf(alarm)}</Link></>)],
    ["Reason", instance.reason], ["Type", instance.type], ["vCPUs", sizeFact(instance, sizes(instance).cpus, instance.cpus_now, instance.live_cpus, String)],
    ["Memory", sizeFact(instance, sizes(instance).memory, instance.memory_now_mib, instance.live_memory_mib, size)],
    ["Limits", limitsOf(instance)], ["CPU credits", creditsFact(instance)],
    ["Not kept by this host", instance.unenforced && <span class="warn">{instance.unenforced.split(" ").map(title).join(", ")}</span>],
    ["Restart", instance.restart_needed && <span class="warn">needed for all of its new size</span>], ["Image", instance.image],
    ["Snapshot", live.find("snapshot", instance.snapshot)?.name], ["Ports", address(instance)],
    ["Network card", nic && <>{cardName(nic)}, <code>{nic.mac}</code>{nic.network !== "user" && `, ${nic.network}`}</>], [addressTitle(nic), instance.address],
    ["To get in", instance.ssh_port && <code>corbel ssh {nameOf(instance)}</code>],
    ["Engine", instance.engine_used ?? instance.engine], ["Restarts", instance.restarts || null], ["Tags", tags(instance)],
    ["Created", <Time at={instance.created} />],
  ].filter(([, value]) => value !== undefined && value !== "" && value !== null && value !== false);
  return <dl class="facts">{facts.map(([name, value]) => <div key={name}><dt>{name}</dt><dd>{value}</dd></div>)}</dl>;
}

// Its own volumes and network card, and those that nobody has.
const disksAndNics = (instance, networks) => (live) => ({ network: networks, nic: nicsFor(live, instance.project, instance), volumes: live.all("volume")
  .filter((volume) => (volume.project === instance.project && volume.state === "available") || instance.volumes?.includes(volume.id))
  .map((volume) => ({ value: volume.id, text: `${volume.name ?? volume.id}, ${volume.size_gib} GiB` })) });

// What the console showed, of a machine that runs no more.
function LastWords({ instance }) {
  const [log, setLog] = useState(null);
  useEffect(() => { attempt(() => get(`/v1/instances/${instance.id}/log`)).then((answer) => setLog(answer ?? {})); }, [instance.id, instance.state]);
  const text = log?.serial?.replace(/\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b./g, "");
  return (
    <>
      <Empty>The console is there while the instance runs.{text && " This is the last of what it showed:"}</Empty>
      {text && <pre class="last-words" tabIndex={0} role="log" aria-label="What the console showed">{text}</pre>}
    </>
  );
}

const TABS = ["overview", "console", "network", "storage", "snapshots", "alarms", "events"];
const CHANGING = new Set(["console"]); // looking at it needs the right to change

export function Instance({ id, tab = "overview" }) {
  const live = useLive();
  const { canChange } = useWho();
  const networks = useNetworks();
  const [dialog, setDialog] = useState(null);
  const instance = live.find("instance", id);
  if (!instance) return <Page title="Instance"><Empty>There is no instance {id}. <a href="#/instances">All instances</a></Empty></Page>;
  const events = live.all("event").filter((event) => event.target === instance.id)
    .sort((a, b) => (b.created ?? 0) - (a.created ?? 0));
  return (
    <Page title={nameOf(instance)} actions={canChange && <>
      {ACTIONS.filter((action) => canDo(action, instance)).map((action) =>
        <button key={action.name} type="button" onClick={() => actOn(action, [instance])}>{action.title}</button>)}
      <button type="button" onClick={() => setDialog("resize")}>Resize</button>
      <button type="button" onClick={() => setDialog("edit")}>Change</button>
      <button type="button" class="danger" onClick={() => setDialog("delete")}>Delete</button></>}>
      <nav class="tabs" aria-label="Parts of the instance">
        {TABS.filter((name) => canChange || !CHANGING.has(name)).map((name) => <a key={name} href={`#/instances/${instance.id}/${name}`} aria-current={tab === name ? "page" : undefined}>
          {name[0].toUpperCase() + name.slice(1)}</a>)}
      </nav>
      {tab === "overview" && <><Facts instance={instance} /><InstanceCharts instance={instance} /></>}
      {tab === "console" && !canChange && <Empty>Your role does not reach the console.</Empty>}
      {tab === "console" && canChange && (instance.state === "running" ? <Console instance={instance} />
        : <LastWords instance={instance} />)}
      {tab === "snapshots" && <SnapshotsOf instance={instance} />}
      {tab === "network" && <NetworkOf instance={instance} />}
      {tab === "storage" && <StorageOf instance={instance} />}
      {tab === "alarms" && <AlarmsOf instance={instance} />}
      {tab === "events" && <EventTable events={events} />}
      {dialog === "resize" && <Resize instance={instance} onClose={() => setDialog(null)} />}
      {dialog === "edit" && <ChangeDialog object={instance} plural="instances" isIn={(name) => !RESIZABLE.has(name)}
        choices={disksAndNics(instance, networks)} onClose={() => setDialog(null)} />}
      {dialog === "delete" && <Confirm title="Delete instance" verb="Delete" onClose={() => setDialog(null)}
        text={`${nameOf(instance)} is ended if it runs, and its disks go with it.`}
        onYes={() => { deleteAll("instances", [instance]); location.hash = "#/instances"; }} />}
    </Page>
  );
}
