// Volumes: those that there are, who has them, and an instance's disks.

import { useState } from "preact/hooks";
import { post } from "./api.js";
import { editList, finish, report } from "./actions.js";
import { ChangeDialog, isOff } from "./change.jsx";
import { nameOf, rate, tags } from "./format.js";
import { useLive } from "./hooks.js";
import { List } from "./list.jsx";
import { Create, inProject } from "./pages.jsx";
import { attempt, Badge, Confirm, Dialog, Empty, Form, Link, Table, Time } from "./ui.jsx";
import { useWho } from "./who.js";

const MOST = 8; // of one instance
const PARTS = [
  { title: "What it is", names: ["name", "project_of", "size_gib", "snapshot"] },
  { title: "Limits", names: ["bps", "iops"], isDense: true },
];
const canHave = (instance) => (isOff(instance) || instance.state === "running") && (instance.volumes ?? []).length < MOST;

const limitsOf = (volume, bytes = volume.bps, operations = volume.iops) =>
  [bytes && `${rate(bytes)}B/s`, operations && `${rate(operations)}operations/s`].filter(Boolean).join(", ");

// A running guest sees a disk come, or lets one go, until the operation ends.
const give = (instance, volume) => editList(instance.id, "volumes", (ids) => [...ids, volume.id]);
const given = (answer, instance, volume) => report(answer, nameOf(instance), `${nameOf(instance)} has ${nameOf(volume)}`);
const detach = async (instance, volume) => report(await editList(instance.id, "volumes", (ids) => ids.filter((id) => id !== volume.id)),
  nameOf(instance), `${nameOf(volume)} is free`);

// Chooses the other one: an instance for a volume, or a volume for an instance.
function Attach({ volume, instance, onClose }) {
  const live = useLive();
  const own = (one) => one.project === (volume ?? instance).project;
  const rows = volume ? live.all("instance").filter((one) => own(one) && canHave(one))
    : live.all("volume").filter((one) => own(one) && one.state === "available");
  const field = volume ? "instance" : "volume";
  const schema = { required: [field], properties: { [field]: { type: "string",
    description: volume ? "one that runs gets it at once, others with their next start" : "one that nobody has" } } };
  const text = (one) => (volume ? nameOf(one) : `${nameOf(one)}, ${one.size_gib} GiB`);
  const submit = async (values) => {
    const other = rows.find((one) => one.id === values[field]);
    const pair = volume ? [other, volume] : [instance, other];
    const answer = await give(...pair);
    onClose();
    await attempt(() => given(answer, ...pair));
  };
  return (
    <Dialog title={`Attach ${volume ? nameOf(volume) : `a volume to ${nameOf(instance)}`}`} onClose={onClose}>
      {rows.length === 0 ? <>
        <Empty>{volume ? "No instance of its project can take it." : "No volume of its project is free."}</Empty>
        <div class="actions end"><button type="button" onClick={onClose}>Close</button></div></>
        : <Form schema={schema} verb="Attach" choices={{ [field]: rows.map((one) => ({ value: one.id, text: text(one) })) }}
          onSubmit={submit} onCancel={onClose} />}
    </Dialog>
  );
}

function Detach({ volume, onClose }) {
  const live = useLive();
  const instance = live.find("instance", volume.instance);
  return <Confirm title={`Detach ${nameOf(volume)}`} verb="Detach" onClose={onClose}
    text={isOff(instance) ? `${nameOf(instance)} is off: it starts without it from now on.`
      : `${nameOf(instance)} runs: unmount it there first. What the guest has not written yet is lost otherwise.`}
    onYes={() => attempt(() => detach(instance, volume))} />;
}

function Change({ volume, onClose }) {
  return <ChangeDialog object={volume} plural="volumes" sections={PARTS} onClose={onClose}
    done={(answer) => report(answer, nameOf(volume), `${nameOf(volume)} is changed`)} />;
}

const takeSnapshot = (volume) => attempt(() => post(`/v1/snapshots${inProject(volume.project)}`, { volume: volume.id }), "Snapshot taken");

// What can be done with one; onAct(verb, volume) opens the dialog for it.
function Actions({ volume, onAct }) {
  const live = useLive();
  const name = nameOf(volume);
  const instance = volume.instance && live.find("instance", volume.instance);
  const isSettled = ["available", "in-use"].includes(volume.state);
  const mayDetach = instance && (isOff(instance) || instance.state === "running");
  return (
    <span class="actions">
      {volume.state === "available" && !instance && <button type="button" aria-label={`Attach ${name}`} onClick={() => onAct("attach", volume)}>Attach</button>}
      {instance && <button type="button" aria-label={`Detach ${name}`} disabled={!mayDetach || !isSettled}
        title={mayDetach ? "" : `its instance is ${instance.state}`} onClick={() => onAct("detach", volume)}>Detach</button>}
      <button type="button" aria-label={`Take a snapshot of ${name}`} disabled={!isSettled} onClick={() => takeSnapshot(volume)}>Snapshot</button>
      <button type="button" aria-label={`Change ${name}`} disabled={!isSettled} onClick={() => onAct("change", volume)}>Change</button>
    </span>
  );
}

function Decide({ act: [verb, volume], onClose }) {
  if (verb === "attach") return <Attach volume={volume} onClose={onClose} />;
  if (verb === "detach") return <Detach volume={volume} onClose={onClose} />;
  return <Change volume={volume} onClose={onClose} />;
}

function State({ volume }) {
  return <><Badge state={volume.state} />{volume.reason && <span class="error"> {volume.reason}</span>}</>;
}

const SIZE = { name: "size_gib", title: "Size", of: (volume) => <span class="nowrap">{volume.size_gib} GiB</span>, sort: (volume) => volume.size_gib };
const STATE = { name: "state", title: "State", of: (volume) => <State volume={volume} /> };
const LIMITS = { name: "limits", title: "Limits", of: (volume) => limitsOf(volume) };

export function Volumes() {
  const live = useLive();
  const { canChange } = useWho();
  const [act, setAct] = useState(null);
  const owner = (volume) => live.find("instance", volume.instance);
  return (
    <>
      <List heading="Volumes" plural="volumes" rows={live.all("volume")} canDelete={canChange}
        fixed={(volume) => !["available", "failed"].includes(volume.state) && `it is ${volume.state}`}
        deleteText={": what they hold is lost; snapshots of them stay."}
        create={canChange && ((onClose) => <Create path="volumes" heading="New volume" sections={PARTS} onClose={onClose} />)}
        columns={[
          { name: "name", title: "Name", of: nameOf, sort: nameOf }, SIZE, STATE,
          { name: "instance", title: "Instance", sort: (volume) => (owner(volume) ? nameOf(owner(volume)) : ""),
            of: (volume) => (owner(volume) ? <Link to={`instances/${volume.instance}/storage`}>{nameOf(owner(volume))}</Link> : volume.instance) },
          LIMITS,
          { name: "snapshot", title: "Stands on", of: (volume) => volume.snapshot && nameOf(live.find("snapshot", volume.snapshot) ?? { id: volume.snapshot }) },
          { name: "tags", title: "Tags", of: tags },
          { name: "created", title: "Age", of: (volume) => <Time at={volume.created} />, sort: (volume) => volume.created ?? 0 },
          ...(canChange ? [{ name: "actions", title: "", of: (volume) => <Actions volume={volume} onAct={(...what) => setAct(what)} /> }] : []),
        ]} />
      {act && <Decide act={act} onClose={() => setAct(null)} />}
    </>
  );
}

/* ---- an instance's ---- */

const OWN_LIMITS = ["disk_bps", "disk_iops"];

export function StorageOf({ instance }) {
  const live = useLive();
  const { canChange } = useWho();
  const [act, setAct] = useState(null);
  const close = () => setAct(null);
  const name = nameOf(instance);
  const volumes = (instance.volumes ?? []).map((id) => live.find("volume", id)).filter(Boolean);
  const mayHave = canChange && canHave(instance);
  const facts = [["Size", instance.disk_gib ? `${instance.disk_gib} GiB` : "the image's"], ["Made from", instance.image],
    ["Stands on", live.find("snapshot", instance.snapshot) && nameOf(live.find("snapshot", instance.snapshot))],
    ["Limits", limitsOf(instance, instance.disk_bps, instance.disk_iops) || "no limit"]].filter(([, value]) => value);
  const made = async (answer) => {
    const operation = await finish(answer);
    if (operation?.state === "done") await given(await give(instance, answer.volume), instance, answer.volume);
    else await report({ operation }, nameOf(answer.volume));
  };
  return (
    <>
      <section aria-label="Its own disk">
        <div class="page-head"><h2>Its own disk</h2>
          {canChange && <div class="actions"><button type="button" onClick={() => setAct(["limits"])}>Change limits</button></div>}</div>
        <dl class="facts">{facts.map(([term, value]) => <div key={term}><dt>{term}</dt><dd>{value}</dd></div>)}</dl>
      </section>
      <section aria-label="Volumes">
        <div class="page-head"><h2>Volumes</h2>
          {mayHave && <div class="actions">
            <button type="button" onClick={() => setAct(["choose"])}>Attach volume</button>
            <button type="button" onClick={() => setAct(["create"])}>New volume</button></div>}</div>
        <Table label="Volumes" rows={volumes} empty="No disk beside its own."
          columns={[{ name: "name", title: "Name", of: nameOf, sort: nameOf }, SIZE, STATE, LIMITS,
            ...(canChange ? [{ name: "actions", title: "", of: (volume) => <Actions volume={volume} onAct={(...what) => setAct(what)} /> }] : [])]} />
      </section>
      {act?.[0] === "limits" && <ChangeDialog object={instance} plural="instances" heading={`Limits of the disk of ${name}`}
        isIn={(field) => OWN_LIMITS.includes(field)} onClose={close} done={(answer) => report(answer, name, "The new limits hold")} />}
      {act?.[0] === "choose" && <Attach instance={instance} onClose={close} />}
      {act?.[0] === "create" && <Create path="volumes" heading={`New volume for ${name}`} sections={PARTS} project={instance.project} onClose={close} onDone={made} />}
      {act?.[1] && <Decide act={act} onClose={close} />}
    </>
  );
}
