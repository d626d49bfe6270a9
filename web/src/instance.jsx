// One instance: facts, actions, charts, console, events.

import { useEffect, useState } from "preact/hooks";
import { ChangeDialog } from "./change.jsx";
import { useLive } from "./hooks.js";
import { ACTIONS, actOn, canDo, deleteAll } from "./actions.js";
import { limitsOf, Resize, RESIZABLE, sizeFact } from "./limits.jsx";
import { address, EventTable, nicsFor, sizes } from "./pages.jsx";
import { size, tags } from "./format.js";
import { attempt, Badge, Confirm, Empty, Page, Time, title } from "./ui.jsx";
import { InstanceCharts } from "./charts.jsx";
import { SnapshotsOf } from "./snapshots.jsx";
import { Console } from "./terminal.jsx";
import { get } from "./api.js";

function Facts({ instance }) {
  const live = useLive();
  const nic = live.find("nic", instance.nic);
  const facts = [
    ["Id", <code>{instance.id}</code>], ["State", <Badge state={instance.state} />],
    ["Reason", instance.reason], ["Type", instance.type], ["vCPUs", sizeFact(instance, sizes(instance).cpus, instance.cpus_now, instance.live_cpus, String)],
    ["Memory", sizeFact(instance, sizes(instance).memory, instance.memory_now_mib, instance.live_memory_mib, size)],
    ["Limits", limitsOf(instance)],
    ["Not kept by this host", instance.unenforced && <span class="warn">{instance.unenforced.split(" ").map(title).join(", ")}</span>],
    ["Restart", instance.restart_needed && <span class="warn">needed for all of its new size</span>], ["Image", instance.image],
    ["Snapshot", live.find("snapshot", instance.snapshot)?.name], ["Ports", address(instance)],
    ["NIC", nic && <>{nic.own ? "its own" : nic.name}, <code>{nic.mac}</code></>],
    ["To get in", instance.ssh_port && <code>corbel ssh {instance.name ?? instance.id}</code>],
    ["Engine", instance.engine_used ?? instance.engine], ["Restarts", instance.restarts || null], ["Tags", tags(instance)],
    ["Created", <Time at={instance.created} />],
  ].filter(([, value]) => value !== undefined && value !== "" && value !== null);
  return <dl class="facts">{facts.map(([name, value]) => <div key={name}><dt>{name}</dt><dd>{value}</dd></div>)}</dl>;
}

// Its own volumes and network card, and those that nobody has.
const disksAndNics = (instance) => (live) => ({ nic: nicsFor(live, instance), volumes: live.all("volume")
  .filter((volume) => volume.state === "available" || instance.volumes?.includes(volume.id))
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

const TABS = ["overview", "console", "snapshots", "events"];

export function Instance({ id, tab = "overview", canChange }) {
  const live = useLive();
  const [dialog, setDialog] = useState(null);
  const instance = live.find("instance", id);
  if (!instance) return <Page title="Instance"><Empty>There is no instance {id}. <a href="#/instances">All instances</a></Empty></Page>;
  const events = live.all("event").filter((event) => event.target === instance.id)
    .sort((a, b) => (b.created ?? 0) - (a.created ?? 0));
  return (
    <Page title={instance.name ?? instance.id} actions={<>
      {ACTIONS.filter((action) => canDo(action, instance)).map((action) =>
        <button key={action.name} type="button" onClick={() => actOn(action, [instance])}>{action.title}</button>)}
      <button type="button" onClick={() => setDialog("resize")}>Resize</button>
      <button type="button" onClick={() => setDialog("edit")}>Change</button>
      <button type="button" class="danger" onClick={() => setDialog("delete")}>Delete</button></>}>
      <nav class="tabs" aria-label="Parts of the instance">
        {TABS.map((name) => <a key={name} href={`#/instances/${instance.id}/${name}`} aria-current={tab === name ? "page" : undefined}>
          {name[0].toUpperCase() + name.slice(1)}</a>)}
      </nav>
      {tab === "overview" && <><Facts instance={instance} /><InstanceCharts instance={instance} /></>}
      {tab === "console" && (instance.state === "running" ? <Console instance={instance} />
        : <LastWords instance={instance} />)}
      {tab === "snapshots" && <SnapshotsOf instance={instance} canChange={canChange} />}
      {tab === "events" && <EventTable events={events} />}
      {dialog === "resize" && <Resize instance={instance} onClose={() => setDialog(null)} />}
      {dialog === "edit" && <ChangeDialog instance={instance} verb="Change" isIn={(name) => !RESIZABLE.has(name)}
        choices={disksAndNics(instance)} onClose={() => setDialog(null)} />}
      {dialog === "delete" && <Confirm title="Delete instance" verb="Delete" onClose={() => setDialog(null)}
        text={`${instance.name ?? instance.id} is ended if it runs, and its disks go with it.`}
        onYes={() => { deleteAll("instances", [instance]); location.hash = "#/instances"; }} />}
    </Page>
  );
}
