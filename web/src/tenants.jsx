// Who uses the host: projects, what they may have, and users.

import { useState } from "preact/hooks";
import { patch, remove } from "./api.js";
import { useLive } from "./hooks.js";
import { deleteAll } from "./actions.js";
import { ChangeDialog } from "./change.jsx";
import { choicesFor, Create, useList, useSchema } from "./pages.jsx";
import { nameOf, size, tags, when } from "./format.js";
import { useRoleChoices } from "./roles.jsx";
import { attempt, Confirm, Dialog, Empty, Filter, Form, matching, Page, Table, Time } from "./ui.jsx";
import { useWho } from "./who.js";

const total = (objects, field) => objects.reduce((sum, object) => sum + (object[field] ?? 0), 0);
const gib = (count) => `${count} GiB`;

// What a project has and may have: [{title, used, limit, show}]; limit 0: none.
export function quotasOf(project, live) {
  const own = (kind) => live.all(kind).filter((object) => object.project === project.id);
  const instances = own("instance");
  return [
    { title: "Instances", used: instances.length, limit: project.max_instances ?? 0, show: String },
    { title: "vCPUs", used: total(instances, "cpus"), limit: project.max_cpus ?? 0, show: String },
    { title: "Memory", used: total(instances, "memory_mib"), limit: project.max_memory_mib ?? 0, show: size },
    { title: "Volumes and snapshots", used: total(own("volume"), "size_gib") + total(own("snapshot"), "size_gib"), limit: project.max_volume_gib ?? 0, show: gib },
    { title: "Snapshots", used: own("snapshot").length, limit: project.max_snapshots ?? 0, show: String },
    { title: "Network cards", used: own("nic").length, limit: project.max_nics ?? 0, show: String },
    { title: "Alarms", used: own("alarm").length, limit: project.max_alarms ?? 0, show: String },
    { title: "Key pairs", used: own("key").length, limit: project.max_keys ?? 0, show: String },
    { title: "Webhooks", used: own("hook").length, limit: project.max_hooks ?? 0, show: String },
  ];
}

export function Quota({ quota }) {
  const { title, used, limit, show } = quota;
  const percent = limit > 0 ? Math.min(100, (100 * used) / limit) : 0;
  return (
    <div class="quota">
      <span><span>{title}</span><span>{show(used)}{limit > 0 ? ` of ${show(limit)}` : ", no limit"}</span></span>
      {limit > 0 && (
        <div class="meter" role="meter" aria-label={title} aria-valuenow={used} aria-valuemin={0} aria-valuemax={limit}>
          <div style={{ width: `${percent}%` }} class={percent > 90 ? "full" : ""} /></div>)}
    </div>
  );
}

export function QuotaCard({ project, children }) {
  const live = useLive();
  return (
    <section class="card" aria-label={`Quotas of ${nameOf(project)}`}>
      <h2>{nameOf(project)}</h2>
      {quotasOf(project, live).map((quota) => <Quota key={quota.title} quota={quota} />)}
      {children}
    </section>
  );
}

const TITLES = { max_instances: "Instances", max_cpus: "vCPUs", max_memory_mib: "Memory (MiB)", max_volume_gib: "Volumes and snapshots (GiB)",
  max_snapshots: "Snapshots", max_nics: "Network cards", max_alarms: "Alarms", max_keys: "Key pairs", max_hooks: "Webhooks" };

function Limits({ project, onClose }) {
  return <ChangeDialog object={project} plural="projects" heading={`Limits of ${nameOf(project)}`} titles={TITLES} onClose={onClose} />;
}

export function Quotas() {
  const live = useLive();
  const { isAdmin: canChange } = useWho();
  const [filter, setFilter] = useState("");
  const [changing, setChanging] = useState(null);
  const projects = matching(live.all("project"), filter);
  return (
    <Page title="Quotas" actions={<Filter label="Filter quotas" value={filter} onInput={setFilter} />}>
      {projects.length === 0 && <Empty>No project.</Empty>}
      <div class="cards broad">
        {projects.map((project) => (
          <QuotaCard key={project.id} project={project}>
            {canChange && (
              <div class="actions end"><button type="button" aria-label={`Change limits of ${nameOf(project)}`}
                onClick={() => setChanging(project)}>Change</button></div>)}
          </QuotaCard>))}
      </div>
      {changing && <Limits project={changing} onClose={() => setChanging(null)} />}
    </Page>
  );
}

export function Projects() {
  const live = useLive();
  const { isAdmin: canChange } = useWho();
  const [filter, setFilter] = useState("");
  const [selected, setSelected] = useState(new Set());
  const [dialog, setDialog] = useState(null);
  const rows = matching(live.all("project"), filter);
  const isFull = (project) => ["instance", "volume", "snapshot", "nic", "alarm", "hook"].some((kind) => live.all(kind).some((object) => object.project === project.id));
  const fixed = (project) => (project.name === "default" ? "it stays" : isFull(project) && "it is not empty");
  const chosen = live.all("project").filter((project) => selected.has(project.id) && !fixed(project));
  const count = (kind) => (project) => live.all(kind).filter((object) => object.project === project.id).length;
  const counted = (kind, title) => ({ name: kind, title, of: count(kind), sort: count(kind) });
  return (
    <Page title="Projects" actions={<>
      <Filter label="Filter projects" value={filter} onInput={setFilter} />
      {canChange && <button type="button" class="primary" onClick={() => setDialog("create")}>New</button>}</>}>
      {chosen.length > 0 && (
        <div class="bulk" role="toolbar" aria-label="What to do with the selected projects"><span>{chosen.length} selected</span>
          <button type="button" class="danger" onClick={() => setDialog("delete")}>Delete</button></div>)}
      <Table label="Projects" rows={rows} selected={selected} onSelect={canChange ? setSelected : undefined} fixed={fixed} empty="No project."
        columns={[
          { name: "name", title: "Name", of: nameOf, sort: nameOf },
          counted("instance", "Instances"), counted("volume", "Volumes"), counted("snapshot", "Snapshots"), counted("nic", "Network cards"), counted("alarm", "Alarms"),
          { name: "tags", title: "Tags", of: tags },
          { name: "created", title: "Age", of: (project) => <Time at={project.created} />, sort: (project) => project.created ?? 0 },
          ...(canChange ? [{ name: "limits", title: "", of: (project) => (
            <button type="button" aria-label={`Change limits of ${nameOf(project)}`} onClick={() => setDialog(project)}>Limits</button>) }] : []),
        ]} />
      {dialog === "create" && <Create path="projects" heading="New project" titles={TITLES} onClose={() => setDialog(null)} />}
      {dialog === "delete" && <Confirm title="Delete projects" verb="Delete" onClose={() => setDialog(null)}
        text={`${chosen.map(nameOf).join(", ")}: a project has to be empty first.`}
        onYes={() => { deleteAll("projects", chosen); setSelected(new Set()); }} />}
      {dialog?.id && <Limits project={dialog} onClose={() => setDialog(null)} />}
    </Page>
  );
}

function Change({ user, onClose, onDone }) {
  const live = useLive();
  const schema = useSchema("/v1/users/{id}", "patch");
  const roles = useRoleChoices(user.role);
  return (
    <Dialog title={`Change ${user.name}`} onClose={onClose}>
      {schema && <Form schema={schema} verb="Change" choices={{ ...choicesFor(live, schema), role: roles }} onCancel={onClose}
        initial={{ role: user.role, project: user.project || undefined }}
        onSubmit={async (values) => { await patch(`/v1/users/${user.name}`, values); onClose(); onDone(); }} />}
    </Dialog>
  );
}

export function Users() {
  const live = useLive();
  const [users, load] = useList("users");
  const roles = useRoleChoices(...(users ?? []).map((user) => user.role));
  const [filter, setFilter] = useState("");
  const [selected, setSelected] = useState(new Set());
  const [dialog, setDialog] = useState(null);
  const rows = (users ?? []).map((user) => ({ ...user, id: user.name }));
  const chosen = rows.filter((user) => selected.has(user.id));
  const project = (user) => (user.project ? nameOf(live.find("project", user.project) ?? { id: user.project }) : "all");
  return (
    <Page title="Users" actions={<>
      <Filter label="Filter users" value={filter} onInput={setFilter} />
      <button type="button" class="primary" onClick={() => setDialog("create")}>New</button></>}>
      {chosen.length > 0 && (
        <div class="bulk" role="toolbar" aria-label="What to do with the selected users"><span>{chosen.length} selected</span>
          <button type="button" class="danger" onClick={() => setDialog("delete")}>Delete</button></div>)}
      <Table label="Users" rows={matching(rows, filter)} selected={selected} onSelect={setSelected}
        empty={!users ? "Loading ..." : filter ? "No user matches the filter." : "No user can sign in yet."}
        columns={[
          { name: "name", title: "Name" },
          { name: "role", title: "Role", sort: (user) => user.role, of: (user) => (
            <select aria-label={`Role of ${user.name}`} value={user.role} onChange={(event) =>
              attempt(() => patch(`/v1/users/${user.name}`, { role: event.target.value }), "Role changed").then(load)}>
              {roles.map(({ value }) => <option key={value}>{value}</option>)}
            </select>) },
          { name: "project", title: "Project", of: project, sort: project },
          { name: "second_factor", title: "Second factor", sort: (user) => (user.second_factor ? 1 : 0), of: (user) => (user.second_factor
            ? <button type="button" aria-label={`Reset second factor of ${user.name}`} onClick={() => setDialog({ reset: user.name })}>Reset</button> : null) },
          { name: "created", title: "Since", of: (user) => when(user.created), sort: (user) => user.created ?? 0 },
          { name: "change", title: "", of: (user) => (
            <button type="button" aria-label={`Change ${user.name}`} onClick={() => setDialog(user)}>Change</button>) },
        ]} />
      {dialog === "create" && <Create path="users" heading="New user" choices={() => ({ role: roles })} onClose={() => setDialog(null)} onDone={load} />}
      {dialog === "delete" && <Confirm title="Delete users" verb="Delete" onClose={() => setDialog(null)}
        text={`${chosen.map(nameOf).join(", ")}: their sessions and tokens end, too.`}
        onYes={() => { deleteAll("users", chosen).then(load); setSelected(new Set()); }} />}
      {dialog?.reset && <Confirm title="Reset second factor" verb="Reset" onClose={() => setDialog(null)}
        text={`${dialog.reset} signs in by name and password alone, until there is another one.`}
        onYes={() => attempt(() => remove(`/v1/users/${dialog.reset}/totp`), "Second factor reset").then(load)} />}
      {dialog?.name && <Change user={dialog} onClose={() => setDialog(null)} onDone={load} />}
    </Page>
  );
}
