// One instance: facts, actions, charts, console, events.

import { useEffect, useState } from "preact/hooks";
import { patch } from "./api.js";
import { useLive } from "./hooks.js";
import { ACTIONS, actOn, canDo, deleteAll } from "./actions.js";
import { address, bodySchema, EventTable, sizes } from "./pages.jsx";
import { size, tags } from "./format.js";
import { attempt, Badge, Confirm, Dialog, Empty, Form, Page, Time } from "./ui.jsx";
import { InstanceCharts } from "./charts.jsx";
import { SnapshotsOf } from "./snapshots.jsx";
import { Console } from "./terminal.jsx";

function Facts({ instance }) {
  const live = useLive();
  const facts = [
    ["Id", <code>{instance.id}</code>], ["State", <Badge state={instance.state} />],
    ["Reason", instance.reason], ["Type", instance.type], ["vCPUs", sizes(instance).cpus],
    ["Memory", size(sizes(instance).memory)], ["Image", instance.image],
    ["Snapshot", live.find("snapshot", instance.snapshot)?.name], ["Ports", address(instance)],
    ["To get in", instance.ssh_port && <code>corbel ssh {instance.name ?? instance.id}</code>],
    ["Engine", instance.engine_used ?? instance.engine], ["Restarts", instance.restarts || null], ["Tags", tags(instance)],
    ["Created", <Time at={instance.created} />],
  ].filter(([, value]) => value !== undefined && value !== "" && value !== null);
  return <dl class="facts">{facts.map(([name, value]) => <div key={name}><dt>{name}</dt><dd>{value}</dd></div>)}</dl>;
}

function Edit({ instance, onClose }) {
  const [schema, setSchema] = useState(null);
  useEffect(() => { attempt(() => bodySchema("/v1/instances/{id}", "patch")).then(setSchema); }, []);
  return (
    <Dialog title={`Change ${instance.name ?? instance.id}`} onClose={onClose}>
      {schema && <Form schema={schema} verb="Change" onCancel={onClose}
        onSubmit={async (values) => { await patch(`/v1/instances/${instance.id}`, values); onClose(); }} />}
    </Dialog>
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
      <button type="button" onClick={() => setDialog("edit")}>Change</button>
      <button type="button" class="danger" onClick={() => setDialog("delete")}>Delete</button></>}>
      <nav class="tabs" aria-label="Parts of the instance">
        {TABS.map((name) => <a key={name} href={`#/instances/${instance.id}/${name}`} aria-current={tab === name ? "page" : undefined}>
          {name[0].toUpperCase() + name.slice(1)}</a>)}
      </nav>
      {tab === "overview" && <><Facts instance={instance} /><InstanceCharts instance={instance} /></>}
      {tab === "console" && (instance.state === "running" ? <Console instance={instance} />
        : <Empty>The console is there while the instance runs.</Empty>)}
      {tab === "snapshots" && <SnapshotsOf instance={instance} canChange={canChange} />}
      {tab === "events" && <EventTable events={events} />}
      {dialog === "edit" && <Edit instance={instance} onClose={() => setDialog(null)} />}
      {dialog === "delete" && <Confirm title="Delete instance" verb="Delete" onClose={() => setDialog(null)}
        text={`${instance.name ?? instance.id} is ended if it runs, and its disks go with it.`}
        onYes={() => { deleteAll("instances", [instance]); location.hash = "#/instances"; }} />}
    </Page>
  );
}
