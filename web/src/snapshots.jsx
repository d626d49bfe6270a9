// Snapshots as trees, one for each disk that they were taken of.

import { useState } from "preact/hooks";
import { post } from "./api.js";
import { useLive } from "./hooks.js";
import { deleteAll } from "./actions.js";
import { ChangeDialog } from "./change.jsx";
import { nameOf } from "./format.js";
import { Create, inProject } from "./pages.jsx";
import { attempt, Badge, Confirm, Empty, Filter, Link, matching, Page, Time } from "./ui.jsx";
import { useWho } from "./who.js";

const sourceKind = (snapshot) => (snapshot.volume ? "volume" : "instance");

// The trees: [{kind, id, source, roots}], and of each snapshot those that came after it.
function plant(snapshots, live) {
  const known = new Set(snapshots.map((snapshot) => snapshot.id));
  const after = new Map();
  const trees = new Map();
  for (const snapshot of [...snapshots].sort((a, b) => (a.created ?? 0) - (b.created ?? 0))) {
    const kind = sourceKind(snapshot);
    const id = snapshot[kind];
    const parent = snapshots.find((other) => other.id === snapshot.parent);
    if (!trees.has(id)) trees.set(id, { kind, id, name: snapshot.source, source: live.objects[kind].get(id), roots: [] });
    if (parent && known.has(parent.id) && parent[sourceKind(parent)] === id) {
      after.set(parent.id, [...(after.get(parent.id) ?? []), snapshot]);
    } else {
      trees.get(id).roots.push(snapshot);
    }
  }
  return { trees: [...trees.values()], after };
}

function Node({ snapshot, tree, after, canChange, selected, onSelect, onAct }) {
  const live = useLive();
  const name = nameOf(snapshot);
  const next = after.get(snapshot.id) ?? [];
  const origin = live.find("snapshot", snapshot.parent);
  const isElsewhere = origin && origin[sourceKind(origin)] !== tree.id;
  const isReady = snapshot.state === "available";
  const mayRestore = tree.source && (tree.kind === "volume"
    ? tree.source.state === "available" || live.find("instance", tree.source.instance)?.state === "stopped"
    : ["stopped", "failed"].includes(tree.source.state));
  return (
    <li>
      <div class="node">
        {canChange && <input type="checkbox" aria-label={`Select ${name}`} checked={selected.has(snapshot.id)}
          onChange={() => onSelect(snapshot.id)} />}
        <span class="name">{name}</span>
        {snapshot.state !== "available" && <Badge state={snapshot.state} />}
        <span class="muted"><Time at={snapshot.created} />, {snapshot.size_gib} GiB{snapshot.live ? ", live" : ""}</span>
        {isElsewhere && <span class="muted">from {nameOf(origin)} of {origin.source}</span>}
        {tree.source?.snapshot === snapshot.id && <span class="here">● the disk stands here</span>}
        {snapshot.reason && <span class="error">{snapshot.reason}</span>}
        {canChange && (
          <span class="actions">
            <button type="button" aria-label={`Restore ${name}`} disabled={!isReady || !mayRestore}
              title={mayRestore ? "" : tree.source ? "while it is stopped" : "what it was taken of is gone"}
              onClick={() => onAct("restore", snapshot)}>Restore</button>
            {tree.kind === "instance" && isReady &&
              <Link to={`launch/${snapshot.id}`} class="button" aria-label={`New instance from ${name}`}>New instance</Link>}
            <button type="button" aria-label={`New volume from ${name}`} disabled={!isReady} onClick={() => onAct("volume", snapshot)}>New volume</button>
            <button type="button" aria-label={`Rename ${name}`} onClick={() => onAct("rename", snapshot)}>Rename</button>
            <button type="button" class="danger" aria-label={`Delete ${name}`} onClick={() => onAct("delete", snapshot)}>Delete</button>
          </span>)}
      </div>
      {next.length > 0 && (
        <ul>{next.map((child) => <Node key={child.id} {...{ snapshot: child, tree, after, canChange, selected, onSelect, onAct }} />)}</ul>)}
    </li>
  );
}

function NewVolume({ snapshot, onClose }) {
  return <Create path="volumes" heading={`New volume from ${nameOf(snapshot)}`} project={snapshot.project} onClose={onClose}
    initial={{ snapshot: nameOf(snapshot), size_gib: snapshot.size_gib }} />;
}

// What was asked for of one or several snapshots, until it is decided.
function Decide({ act, onClose }) {
  const [verb, snapshots] = act;
  const [first] = snapshots;
  if (verb === "volume") return <NewVolume snapshot={first} onClose={onClose} />;
  if (verb === "rename") return <ChangeDialog object={first} plural="snapshots" isIn={(name) => name === "name"} onClose={onClose} />;
  if (verb === "restore") {
    return <Confirm title={`Restore ${nameOf(first)}`} verb="Restore" onClose={onClose}
      text={`The disk of ${first.source} goes back to ${nameOf(first)}. What was written since is lost, unless there is a snapshot of it.`}
      onYes={() => attempt(() => post(`/v1/snapshots/${first.id}/restore`), "The disk goes back")} />;
  }
  return <Confirm title="Delete snapshots" verb="Delete" onClose={onClose}
    text={`${snapshots.map(nameOf).join(", ")}: others that came after keep what they hold.`}
    onYes={() => deleteAll("snapshots", snapshots)} />;
}

function Forest({ snapshots, canChange, empty }) {
  const live = useLive();
  const [selected, setSelected] = useState(new Set());
  const [act, setAct] = useState(null);
  const { trees, after } = plant(snapshots, live);
  const chosen = snapshots.filter((snapshot) => selected.has(snapshot.id));
  const toggle = (id) => {
    const next = new Set(selected);
    if (!next.delete(id)) next.add(id);
    setSelected(next);
  };
  if (snapshots.length === 0) return <Empty>{empty}</Empty>;
  return (
    <>
      {chosen.length > 0 && (
        <div class="bulk" role="toolbar" aria-label="What to do with the selected snapshots"><span>{chosen.length} selected</span>
          <button type="button" class="danger" onClick={() => setAct(["delete", chosen])}>Delete</button></div>)}
      {trees.map((tree) => (
        <section key={tree.id} class="tree-source" aria-label={`Snapshots of ${tree.name}`}>
          <h2>{tree.kind === "instance" && tree.source ? <Link to={`instances/${tree.id}`}>{nameOf(tree.source)}</Link>
            : tree.source ? nameOf(tree.source) : tree.name} <small class="muted">{tree.source ? tree.kind : `${tree.kind}, deleted`}</small></h2>
          <ul class="tree">
            {tree.roots.map((snapshot) => <Node key={snapshot.id} {...{ snapshot, tree, after, canChange, selected, onSelect: toggle }}
              onAct={(verb, one) => setAct([verb, [one]])} />)}
          </ul>
        </section>))}
      {act && <Decide act={act} onClose={() => setAct(null)} />}
    </>
  );
}

export function Snapshots() {
  const live = useLive();
  const { canChange } = useWho();
  const [filter, setFilter] = useState("");
  const [isCreating, setCreating] = useState(false);
  return (
    <Page title="Snapshots" actions={<>
      <Filter label="Filter snapshots" value={filter} onInput={setFilter} />
      {canChange && <button type="button" class="primary" onClick={() => setCreating(true)}>New</button>}</>}>
      <Forest snapshots={matching(live.all("snapshot"), filter)} canChange={canChange}
        empty={filter ? "No snapshot matches the filter." : "No snapshot yet. One of a running instance takes milliseconds."} />
      {isCreating && <Create path="snapshots" heading="New snapshot" onClose={() => setCreating(false)} />}
    </Page>
  );
}

// On an instance's page: those of its own disk and of its volumes.
export function SnapshotsOf({ instance }) {
  const live = useLive();
  const { canChange } = useWho();
  const volumes = new Set(instance.volumes ?? []);
  const own = live.all("snapshot").filter((snapshot) => snapshot.instance === instance.id || volumes.has(snapshot.volume));
  const take = () => attempt(() => post(`/v1/snapshots${inProject(instance.project)}`, { instance: instance.id }), "Snapshot taken");
  return (
    <>
      {canChange && <div class="actions bar"><button type="button" class="primary" onClick={take}>Take snapshot</button></div>}
      <Forest snapshots={own} canChange={canChange} empty="No snapshot of its disks yet." />
    </>
  );
}
