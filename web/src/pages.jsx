// Dashboard, lists and forms.

import { useEffect, useState } from "preact/hooks";
import { get, post, remove } from "./api.js";
import { useLive, usePolled } from "./hooks.js";
import { KINDS, live } from "./live.js";
import { nameOf, size, tags, when } from "./format.js";
import { ACTIONS, actOn, canDo, deleteAll } from "./actions.js";
import { HostCharts } from "./charts.jsx";
import { List } from "./list.jsx";
import { attempt, Badge, Confirm, Dialog, Filter, Form, Link, matching, Page, Table, Time, title } from "./ui.jsx";
import { useTokenChoices } from "./roles.jsx";
import { QuotaCard } from "./tenants.jsx";
import { useWho } from "./who.js";

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

function HostMeters() {
  const host = usePolled(() => get("/v1/host"), 5, []);
  return <>
    {host?.cpus && <Meter label="vCPUs" used={host.cpus.used} total={host.cpus.total}
      text={`${host.cpus.used} of ${host.cpus.total} given away`} />}
    {host?.memory_mib && <Meter label="Memory" used={host.memory_mib.used} total={host.memory_mib.total}
      text={`${size(host.memory_mib.used)} of ${size(host.memory_mib.total)} given away`} />}
  </>;
}

// Whoever is bound to a project sees what that uses and may use; the host's past is not theirs.
export function Dashboard() {
  const live = useLive();
  const { canChange, project: only } = useWho();
  const project = only && live.find("project", only);
  const instances = live.all("instance");
  const count = (state) => instances.filter((instance) => instance.state === state).length;
  const alarms = live.all("alarm");
  const raised = alarms.filter((alarm) => alarm.state === "alarm");
  const events = live.all("event").sort((a, b) => (b.created ?? 0) - (a.created ?? 0)).slice(0, 12);
  return (
    <Page title="Dashboard" actions={canChange && <Link to="launch" class="button primary">Launch instance</Link>}>
      <div class="cards">
        <div class="card"><h2>Instances</h2>
          <p class="big">{instances.length}</p>
          <p>{count("running")} running, {count("stopped")} stopped</p></div>
        {!only && <HostMeters />}
        <div class="card"><h2>Storage</h2>
          <p class="big">{live.all("volume").length}</p>
          <p>{live.all("volume").length === 1 ? "volume" : "volumes"}, images: {live.all("image").length}</p></div>
        <div class="card"><h2>Alarms</h2>
          <p class={raised.length > 0 ? "big bad" : "big"}>{raised.length}</p>
          <p>of <Link to="alarms">{alarms.length} {alarms.length === 1 ? "alarm" : "alarms"}</Link>{raised.length > 0 && `: ${raised.map(nameOf).join(", ")}`}</p></div>
      </div>
      {only ? project && <><h2>The project</h2><div class="cards broad"><QuotaCard project={project} /></div></>
        : <><h2>The host</h2><HostCharts /></>}
      <h2>What happened</h2>
      <EventTable events={events} />
    </Page>
  );
}

const PAGED = new Set(["instance", "alarm", "hook"]); // each has a page of its own

// The name of the object that an event or operation is about, while it is there.
function Target({ of }) {
  const object = KINDS[of.kind] && live.find(of.kind, of.target);
  const name = object?.name ?? of.target;
  return object && PAGED.has(of.kind) ? <Link to={`${KINDS[of.kind]}/${of.target}`}>{name}</Link> : <>{name}</>;
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
  const { canChange } = useWho();
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
          { name: "cancel", title: "", of: (o) => (canChange && ["pending", "running"].includes(o.state)
            ? <button type="button" onClick={() => attempt(() => post(`/v1/operations/${o.id}/cancel`))}>Cancel</button> : null) },
        ]} />
    </Page>
  );
}

// How it is reached from outside: at its address on a bridge, or by ports of the host.
export const address = (instance) => ((instance.network ?? "user") !== "user" ? instance.address
  : (instance.ports ?? []).map((port) => `127.0.0.1:${port.host_port} → ${port.guest_port}`).join(", "));

// What an instance has: its own figures, or its type's.
export function sizes(instance) {
  const type = live.find("type", instance.type);
  return { cpus: instance.cpus ?? type?.cpus, memory: instance.memory_mib ?? type?.memory_mib };
}

export function Instances() {
  const live = useLive();
  const { canChange } = useWho();
  const [filter, setFilter] = useState("");
  const [selected, setSelected] = useState(new Set());
  const [isDeleting, setDeleting] = useState(false);
  const rows = matching(live.all("instance"), filter);
  const chosen = live.all("instance").filter((instance) => selected.has(instance.id));
  return (
    <Page title="Instances" actions={<>
      <Filter label="Filter instances" value={filter} onInput={setFilter} />
      {canChange && <Link to="launch" class="button primary">Launch instance</Link>}</>}>
      {chosen.length > 0 && (
        <div class="bulk" role="toolbar" aria-label="What to do with the selected instances">
          <span>{chosen.length} selected</span>
          {ACTIONS.filter((action) => chosen.some((instance) => canDo(action, instance))).map((action) =>
            <button key={action.name} type="button" onClick={() => actOn(action, chosen)}>{action.title}</button>)}
          <button type="button" class="danger" onClick={() => setDeleting(true)}>Delete</button>
        </div>)}
      <Table label="Instances" rows={rows} selected={selected} onSelect={canChange ? setSelected : undefined}
        empty={filter ? "No instance matches the filter." : canChange ? "No instance yet. Launch the first one." : "No instance yet."}
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

// The objects that a field can name: of one project, where that is known.
export function choicesFor(live, schema, project) {
  const choices = {};
  for (const name of Object.keys(schema.properties)) {
    const kind = name in KINDS ? name : null;
    if (kind) {
      const all = live.all(kind).filter((object) => !project || !object.project || object.project === project).sort((a, b) =>
        (a.memory_mib ?? 0) - (b.memory_mib ?? 0) || nameOf(a).localeCompare(nameOf(b)));
      choices[name] = all.map((object) => ({ value: nameOf(object), text: nameOf(object) }));
    }
  }
  return choices;
}

// The network cards that nobody has, and the instance's own.
export const nicsFor = (live, project, instance) => live.all("nic")
  .filter((nic) => nic.project === project && (nic.state === "available" || (instance && nic.instance === instance.id)))
  .map((nic) => ({ value: nic.id, text: `${nic.name === nic.id ? nic.mac : `${nic.name}, ${nic.mac}`}${nic.network === "user" ? "" : `, ${nic.network}`}` }));

// Where a new object may go: a field for whoever has a choice, and which project it is then.
export const projectField = (live, who) => (who.project || live.all("project").length < 2 ? {} : {
  project_of: { type: "string", default: "default", description: "whose it is, and whose quota counts" } });
export const projectOf = (live, who, values) => live.find("project", values.project_of ?? (who.project || "default"));
export const inProject = (project) => (project ? `?project=${encodeURIComponent(project)}` : "");
export const namesOf = (objects) => objects.map((object) => ({ value: nameOf(object), text: nameOf(object) }));

// A list of one kind with all its fields, a form to create and a button to delete.
const hidden = new Set(["id", "operation", "revision", "tags", "project", "created", "name", "public_key"]);

function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "object") return Array.isArray(value) ? value.map(cell).join(", ") : JSON.stringify(value);
  return String(value);
}

function cellOf(name, object) {
  const value = object[name];
  if (/^(size|memory)_mib$/.test(name)) return size(value);
  if (/_bytes$/.test(name)) return size(Math.ceil(value / 2 ** 20));
  return cell(value);
}

// secretOf(answer): what only the answer to a creation has.
export function Kind({ kind, heading, path, canChange, note, secretOf }) {
  const live = useLive();
  const [made, setMade] = useState(null);
  const all = live.all(kind);
  const names = [...new Set(all.flatMap((object) => Object.keys(object)))].filter((name) => !hidden.has(name)).slice(0, 7);
  const one = heading.toLowerCase().replace(/s$/, "");
  return (
    <>
      <List heading={heading} plural={path} rows={all} note={note} canDelete={canChange}
        create={canChange && ((onClose) => <Create path={path} heading={`New ${one}`} onClose={onClose}
          onDone={(answer) => setMade(secretOf?.(answer) ?? null)} />)}
        columns={[
          { name: "name", title: "Name", of: nameOf, sort: nameOf },
          ...names.map((name) => ({ name, title: title(name.replace(/_mib$/, "")), of: (object) => cellOf(name, object) })),
          { name: "created", title: "Age", of: (object) => <Time at={object.created} />, sort: (object) => object.created ?? 0 },
        ]} />
      {made && <Once title={`The new ${one}`} secret={made} onClose={() => setMade(null)} />}
    </>
  );
}

// A secret that nobody can ask for again.
export function Once({ title, secret, onClose }) {
  return (
    <Dialog title={title} onClose={onClose}>
      <p>It is shown this once. Keep it where nobody else reads it.</p>
      <p><code class="secret" tabIndex={0} role="textbox" aria-readonly="true" aria-label={title}>{secret}</code></p>
      <div class="actions end"><button type="button" class="primary" onClick={onClose}>Done</button></div>
    </Dialog>
  );
}

// What belongs to a project; the rest is the host's.
const OWNED = new Set(["volumes", "snapshots", "nics", "keys", "alarms", "hooks"]);

// choices(live, project, values) adds to those that follow from the fields; send(values) changes what is sent.
export function Create({ path, heading, initial, sections, titles, choices, extra, intro, project, send, onClose, onDone }) {
  const live = useLive();
  const who = useWho();
  const schema = useSchema(`/v1/${path}`, "post");
  if (!schema) return null;
  const asks = OWNED.has(path) && !project ? projectField(live, who) : {};
  const { name, ...rest } = schema.properties;
  const whole = { ...schema, properties: { ...(name ? { name } : {}), ...asks, ...rest, ...extra } };
  const offered = (values) => {
    const id = OWNED.has(path) ? project ?? projectOf(live, who, values)?.id : undefined;
    return { ...choicesFor(live, schema, id), ...choices?.(live, id, values), project_of: namesOf(live.all("project")) };
  };
  const submit = async ({ project_of: chosen, ...values }) => {
    const answer = await post(`/v1/${path}${inProject(project ?? chosen)}`, send ? send(values) : values);
    onClose();
    if (onDone) await attempt(() => onDone(answer));
  };
  return (
    <Dialog title={heading} onClose={onClose}>
      <Form schema={whole} verb="Create" initial={initial} sections={sections} titles={titles} choices={offered} intro={intro}
        onSubmit={submit} onCancel={onClose} />
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

// A token never does more than who makes it.
export function Tokens() {
  const roles = useTokenChoices();
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
      {isCreating && <Create path="tokens" heading="New API token" onClose={() => setCreating(false)}
        choices={() => ({ role: roles })}
        onDone={(answer) => { setMade(answer.token); load(); }} />}
      {made && <Once title="The new API token" secret={made} onClose={() => setMade(null)} />}
    </Page>
  );
}
