// Dashboard, lists and forms.

import { useEffect, useState } from "preact/hooks";
import { get, post, remove } from "./api.js";
import { useLive, usePolled } from "./hooks.js";
import { KINDS, live } from "./live.js";
import { size, tags, when } from "./format.js";
import { ACTIONS, actOn, canDo, deleteAll } from "./actions.js";
import { HostCharts } from "./charts.jsx";
import { attempt, Badge, Confirm, Dialog, Empty, Filter, Form, Link, matching, Page, Table, Time, title } from "./ui.jsx";

let description;
// The schema of an operation's body, as the server describes it.
export async function bodySchema(path, method) {
  description ??= get("/v1/openapi.json").catch((error) => { description = undefined; throw error; });
  return (await description).paths[path][method].requestBody.content["application/json"].schema;
}

export function useSchema(path, method) {
  const [schema, setSchema] = useState(null);
  useEffect(() => { attempt(() => bodySchema(path, method)).then(setSchema); }, [path, method]);
  return schema;
}

export function Meter({ label, used, total, text }) {
  const percent = total > 0 ? Math.min(100, (100 * used) / total) : 0;
  return (
    <div class="card">
      <h2>{label}</h2>
      <div class="meter" role="meter" aria-label={label} aria-valuenow={used} aria-valuemin={0} aria-valuemax={total}>
        <div style={{ width: `${percent}%` }} class={percent > 90 ? "full" : ""} />
      </div>
      <p>{text}</p>
    </div>
  );
}

export function Dashboard() {
  const live = useLive();
  const host = usePolled(() => get("/v1/host"), 5, []);
  const instances = live.all("instance");
  const count = (state) => instances.filter((instance) => instance.state === state).length;
  const events = live.all("event").sort((a, b) => (b.created ?? 0) - (a.created ?? 0)).slice(0, 12);
  return (
    <Page title="Dashboard" actions={<Link to="launch" class="button primary">Launch instance</Link>}>
      <div class="cards">
        <div class="card"><h2>Instances</h2>
          <p class="big">{instances.length}</p>
          <p>{count("running")} running, {count("stopped")} stopped</p></div>
        {host?.cpus && <Meter label="vCPUs" used={host.cpus.used} total={host.cpus.total}
          text={`${host.cpus.used} of ${host.cpus.total} given away`} />}
        {host?.memory_mib && <Meter label="Memory" used={host.memory_mib.used} total={host.memory_mib.total}
          text={`${size(host.memory_mib.used)} of ${size(host.memory_mib.total)} given away`} />}
        <div class="card"><h2>Storage</h2>
          <p class="big">{live.all("volume").length}</p>
          <p>{live.all("volume").length === 1 ? "volume" : "volumes"}, images: {live.all("image").length}</p></div>
      </div>
      <h2>The host</h2>
      <HostCharts />
      <h2>What happened</h2>
      <EventTable events={events} />
    </Page>
  );
}

// The name of the object that an event or operation is about, while it is there.
function Target({ of }) {
  const object = KINDS[of.kind] && live.find(of.kind, of.target);
  const name = object?.name ?? of.target;
  return of.kind === "instance" && object ? <Link to={`instances/${of.target}`}>{name}</Link> : <>{name}</>;
}

export function EventTable({ events }) {
  return (
    <Table label="Events" rows={events} empty="Nothing has happened yet."
      columns={[
        { name: "created", title: "When", of: (e) => <Time at={e.created} />, sort: (e) => e.created ?? 0 },
        { name: "level", title: "Level", of: (e) => <Badge state={e.level} /> },
        { name: "action", title: "What" },
        { name: "target", title: "Object", of: (e) => <Target of={e} /> },
        { name: "text", title: "In words" },
        { name: "actor", title: "Who" },
      ]} />
  );
}

export function Events() {
  const live = useLive();
  const [filter, setFilter] = useState("");
  const events = live.all("event").sort((a, b) => (b.created ?? 0) - (a.created ?? 0));
  return (
    <Page title="Events" actions={<Filter label="Filter events" value={filter} onInput={setFilter} />}>
      <EventTable events={matching(events, filter).slice(0, 500)} />
    </Page>
  );
}

export function Operations() {
  const live = useLive();
  const operations = live.all("operation").sort((a, b) => (b.created ?? 0) - (a.created ?? 0)).slice(0, 500);
  return (
    <Page title="Operations">
      <Table label="Operations" rows={operations} empty="No operation yet."
        columns={[
          { name: "created", title: "When", of: (o) => <Time at={o.created} />, sort: (o) => o.created ?? 0 },
          { name: "action", title: "What" },
          { name: "target", title: "Object", of: (o) => <Target of={o} /> },
          { name: "state", title: "State", of: (o) => <Badge state={o.state} /> },
          { name: "progress", title: "Progress", of: (o) => <progress max={100} value={o.progress ?? 0} aria-label={`Progress of ${o.id}`} /> },
          { name: "step", title: "Step" },
          { name: "error", title: "Error" },
          { name: "cancel", title: "", of: (o) => (["pending", "running"].includes(o.state)
            ? <button type="button" onClick={() => attempt(() => post(`/v1/operations/${o.id}/cancel`))}>Cancel</button> : null) },
        ]} />
    </Page>
  );
}

export const address = (instance) =>
  (instance.ports ?? []).map((port) => `127.0.0.1:${port.host_port} → ${port.guest_port}`).join(", ");

// What an instance has: its own figures, or its type's.
export function sizes(instance) {
  const type = live.find("type", instance.type);
  return { cpus: instance.cpus ?? type?.cpus, memory: instance.memory_mib ?? type?.memory_mib };
}

export function Instances() {
  const live = useLive();
  const [filter, setFilter] = useState("");
  const [selected, setSelected] = useState(new Set());
  const [isDeleting, setDeleting] = useState(false);
  const rows = matching(live.all("instance"), filter);
  const chosen = live.all("instance").filter((instance) => selected.has(instance.id));
  return (
    <Page title="Instances" actions={<>
      <Filter label="Filter instances" value={filter} onInput={setFilter} />
      <Link to="launch" class="button primary">Launch instance</Link></>}>
      {chosen.length > 0 && (
        <div class="bulk" role="toolbar" aria-label="What to do with the selected instances">
          <span>{chosen.length} selected</span>
          {ACTIONS.filter((action) => chosen.some((instance) => canDo(action, instance))).map((action) =>
            <button key={action.name} type="button" onClick={() => actOn(action, chosen)}>{action.title}</button>)}
          <button type="button" class="danger" onClick={() => setDeleting(true)}>Delete</button>
        </div>)}
      <Table label="Instances" rows={rows} selected={selected} onSelect={setSelected}
        empty={filter ? "No instance matches the filter." : "No instance yet. Launch the first one."}
        columns={[
          { name: "name", title: "Name", of: (i) => <Link to={`instances/${i.id}`}>{i.name ?? i.id}</Link>, sort: (i) => i.name ?? i.id },
          { name: "state", title: "State", of: (i) => <Badge state={i.state} /> },
          { name: "type", title: "Type" },
          { name: "cpus", title: "vCPUs", of: (i) => sizes(i).cpus, sort: (i) => sizes(i).cpus ?? 0 },
          { name: "memory_mib", title: "Memory", of: (i) => size(sizes(i).memory), sort: (i) => sizes(i).memory ?? 0 },
          { name: "address", title: "Address", of: address },
          { name: "tags", title: "Tags", of: tags },
          { name: "created", title: "Age", of: (i) => <Time at={i.created} />, sort: (i) => i.created ?? 0 },
        ]} />
      {isDeleting && <Confirm title="Delete instances" verb="Delete" onClose={() => setDeleting(false)}
        text={`${chosen.map((i) => i.name ?? i.id).join(", ")}: running ones are ended, and their disks go with them.`}
        onYes={() => { deleteAll("instances", chosen); setSelected(new Set()); }} />}
    </Page>
  );
}

// The objects that a field can name.
export function choicesFor(live, schema) {
  const choices = {};
  for (const name of Object.keys(schema.properties)) {
    const kind = name in KINDS ? name : null;
    if (kind) {
      const all = live.all(kind).sort((a, b) =>
        (a.memory_mib ?? 0) - (b.memory_mib ?? 0) || (a.name ?? a.id).localeCompare(b.name ?? b.id));
      choices[name] = all.map((object) => ({ value: object.name ?? object.id, text: object.name ?? object.id }));
    }
  }
  return choices;
}

// The network cards that nobody has, and the instance's own.
export const nicsFor = (live, instance) => live.all("nic")
  .filter((nic) => nic.state === "available" || (instance && nic.instance === instance.id))
  .map((nic) => ({ value: nic.id, text: nic.name === nic.id ? nic.mac : `${nic.name}, ${nic.mac}` }));

// A list of one kind with all its fields, a form to create and a button to delete.
const hidden = new Set(["id", "operation", "revision", "tags", "project", "created", "name", "since"]);

function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "object") return Array.isArray(value) ? value.map(cell).join(", ") : JSON.stringify(value);
  return String(value);
}

export function Kind({ kind, heading, path, rows, canCreate, canDelete, note }) {
  const live = useLive();
  const [filter, setFilter] = useState("");
  const [selected, setSelected] = useState(new Set());
  const [isCreating, setCreating] = useState(false);
  const [isDeleting, setDeleting] = useState(false);
  const all = rows ?? live.all(kind);
  const names = [...new Set(all.flatMap((object) => Object.keys(object)))].filter((name) => !hidden.has(name)).slice(0, 7);
  const chosen = all.filter((object) => selected.has(object.id));
  return (
    <Page title={heading} actions={<>
      <Filter label={`Filter ${heading.toLowerCase()}`} value={filter} onInput={setFilter} />
      {canCreate && <button type="button" class="primary" onClick={() => setCreating(true)}>New</button>}</>}>
      {note}
      {chosen.length > 0 && canDelete && (
        <div class="bulk"><span>{chosen.length} selected</span>
          <button type="button" class="danger" onClick={() => setDeleting(true)}>Delete</button></div>)}
      <Table label={heading} rows={matching(all, filter)} selected={selected} onSelect={canDelete ? setSelected : undefined}
        empty={`No ${heading.toLowerCase()}.`}
        columns={[
          { name: "name", title: "Name", of: (o) => o.name ?? o.id },
          ...names.map((name) => ({ name, title: title(name), of: (o) => (/^(size|memory)_mib$/.test(name) ? size(o[name]) : /_bytes$/.test(name) ? size(Math.ceil(o[name] / 2 ** 20)) : name in KINDS ? live.find(name, o[name])?.name ?? o[name] : name === "state" ? <Badge state={o.state} /> : cell(o[name])) })),
          { name: "created", title: "Age", of: (o) => <Time at={o.created} />, sort: (o) => o.created ?? 0 },
        ]} />
      {isCreating && <Create path={path} heading={heading} onClose={() => setCreating(false)} />}
      {isDeleting && <Confirm title={`Delete ${heading.toLowerCase()}`} verb="Delete" onClose={() => setDeleting(false)}
        text={chosen.map((o) => o.name ?? o.id).join(", ")}
        onYes={() => { deleteAll(path, chosen); setSelected(new Set()); }} />}
    </Page>
  );
}

export function Create({ path, heading, onClose, onDone }) {
  const live = useLive();
  const schema = useSchema(`/v1/${path}`, "post");
  return (
    <Dialog title={`New: ${heading.toLowerCase()}`} onClose={onClose}>
      {schema && <Form schema={schema} verb="Create" choices={choicesFor(live, schema)} onCancel={onClose}
        onSubmit={async (values) => { const answer = await post(`/v1/${path}`, values); onClose(); onDone?.(answer); }} />}
    </Dialog>
  );
}

// What is no object of the live copy: asked for when looked at.
export function useList(path) {
  const [items, setItems] = useState(null); // until it is known
  const load = () => attempt(() => get(`/v1/${path}`)).then((page) => page && setItems(page.items));
  useEffect(() => { load(); }, []);
  return [items, load];
}

export function Tokens() {
  const [tokens, load] = useList("tokens");
  const [isCreating, setCreating] = useState(false);
  const [made, setMade] = useState(null);
  return (
    <Page title="API tokens" actions={<button type="button" class="primary" onClick={() => setCreating(true)}>New</button>}>
      <Table label="API tokens" rows={tokens ?? []} empty={tokens ? "No token." : "Loading ..."}
        columns={[
          { name: "name", title: "Name" }, { name: "user", title: "User" }, { name: "role", title: "Role" },
          { name: "project", title: "Project", of: (token) => token.project || "all" },
          { name: "expires", title: "Expires", of: (token) => (token.expires ? when(token.expires) : "never") },
          { name: "delete", title: "", of: (token) => (
            <button type="button" class="danger" onClick={() =>
              attempt(() => remove(`/v1/tokens/${token.id}`), "Token revoked").then(load)}>Revoke</button>) },
        ]} />
      {isCreating && <Create path="tokens" heading="Token" onClose={() => setCreating(false)}
        onDone={(answer) => { setMade(answer.token); load(); }} />}
      {made && (
        <Dialog title="The new token" onClose={() => setMade(null)}>
          <p>It is shown this once. Keep it where nobody else reads it.</p>
          <p><code class="secret">{made}</code></p>
          <div class="actions end"><button type="button" class="primary" onClick={() => setMade(null)}>Done</button></div>
        </Dialog>)}
    </Page>
  );
}
