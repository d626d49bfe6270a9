// Roles: what is built in, and statements of one's own that allow and deny.

import { useEffect, useState } from "preact/hooks";
import { get, patch, post } from "./api.js";
import { List } from "./list.jsx";
import { useList } from "./pages.jsx";
import { attempt, Empty, Link, Page, show, Time, useSubmit } from "./ui.jsx";
import { useWho } from "./who.js";

const BUILT_IN = ["viewer", "member", "admin"];

// The names of those that were made, for whoever may know them.
function useOwn() {
  const { isAdmin } = useWho();
  const [names, setNames] = useState([]);
  useEffect(() => {
    if (isAdmin) attempt(() => get("/v1/roles")).then((page) => setNames((page?.items ?? []).filter((role) => !role.built_in).map((role) => role.name)));
  }, [isAdmin]);
  return names;
}

const asChoices = (names) => [...new Set(names)].map((name) => ({ value: name, text: name }));

// What a user may become; known: what some are already.
export const useRoleChoices = (...known) => asChoices([...BUILT_IN, ...useOwn(), ...known.filter(Boolean)]);

// What a token may be: no more than who makes it.
export function useTokenChoices() {
  const { role, level } = useWho();
  const own = useOwn();
  return asChoices([...(BUILT_IN.includes(role) ? [] : [role]), ...BUILT_IN.slice(0, BUILT_IN.indexOf(level) + 1), ...own]);
}

const words = (text) => text.split(/[\s,]+/).filter(Boolean);
// A line for each, since a value may hold anything else.
const conditionsOf = (text) => Object.fromEntries(text.split("\n").map((line) => line.trimStart()).filter(Boolean).map((line) => {
  const [name, ...value] = line.split("=");
  return [`tag.${name}`, value.join("=")];
}));
const writeConditions = (conditions, between = "\n") => Object.entries(conditions ?? {}).map(([name, value]) => `${name.slice(4)}=${value}`).join(between);

// As it stands in the form, and as the server has it.
const readStatement = (one) => ({ effect: one.effect, actions: one.actions.join(" "), resources: one.resources.join(" "), conditions: writeConditions(one.conditions) });
const writeStatement = (one) => ({ effect: one.effect, actions: words(one.actions), resources: words(one.resources),
  ...(one.conditions.trim() && { conditions: conditionsOf(one.conditions) }) });
const NEW = { effect: "allow", actions: "", resources: "*", conditions: "" };

const inWords = (one) => `${one.effect} ${one.actions.join(", ")} on ${one.resources.join(", ")}${one.conditions ? ` where ${writeConditions(one.conditions, " and ")}` : ""}`;

export function Roles() {
  const [roles, load] = useList("roles");
  const rows = (roles ?? []).map((role) => ({ ...role, id: role.name }));
  const summary = (role) => (role.built_in ? "built in" : role.statements.map(inWords).join("; "));
  return <List heading="Roles" plural="roles" rows={rows} canDelete fixed={(role) => role.built_in && "it is built in"} onDeleted={load}
    deleteText=": users and tokens must have another one first." actions={<Link to="roles/new" class="button primary">New</Link>}
    columns={[
      { name: "name", title: "Name", of: (role) => <Link to={`roles/${role.name}`}>{role.name}</Link>, sort: (role) => role.name },
      { name: "statements", title: "What it may", of: (role) => <span class="clip">{summary(role)}</span>, sort: summary },
      { name: "created", title: "Age", of: (role) => <Time at={role.created} />, sort: (role) => role.created ?? 0 },
    ]} />;
}

function Text({ id, label, value, help, onInput }) {
  return (
    <div class="field">
      <label for={id}>{label}</label>
      <textarea id={id} rows={2} value={value} aria-describedby={`${id}-help`} spellcheck={false} onInput={(event) => onInput(event.target.value)} />
      <small id={`${id}-help`}>{help}</small>
    </div>
  );
}

function Statement({ number, value, onChange, onRemove }) {
  const set = (name) => (text) => onChange({ ...value, [name]: text });
  const id = (name) => `field-${name}-${number}`;
  return (
    <fieldset class="statement">
      <legend>Statement {number}</legend>
      <div class="field">
        <label for={id("effect")}>Effect</label>
        <select id={id("effect")} value={value.effect} onChange={(event) => set("effect")(event.target.value)}>
          <option value="allow">allow</option><option value="deny">deny</option>
        </select>
      </div>
      <Text id={id("actions")} label="Actions" value={value.actions} onInput={set("actions")} help="instance.get, volume.* or *: see all actions below" />
      <Text id={id("resources")} label="Resources" value={value.resources} onInput={set("resources")} help="Kinds such as instance, ids, or *" />
      <Text id={id("conditions")} label="Only with the tags" value={value.conditions} onInput={set("conditions")} help="name=value, one in each line; none: whatever tags it has" />
      {onRemove && <div class="actions end"><button type="button" class="danger" aria-label={`Remove statement ${number}`} onClick={onRemove}>Remove</button></div>}
    </fieldset>
  );
}

function AllActions({ names }) {
  return (
    <details>
      <summary>All actions</summary>
      <p class="actions-list">{names.map((name) => <code key={name}>{name}</code>)}</p>
    </details>
  );
}

function Editor({ role, names }) {
  const [name, setName] = useState("");
  const [statements, setStatements] = useState(role ? role.statements.map(readStatement) : [NEW]);
  const [submit, fault, isBusy] = useSubmit(async () => {
    const body = { statements: statements.map(writeStatement) };
    await (role ? patch(`/v1/roles/${encodeURIComponent(role.name)}`, body) : post("/v1/roles", { name, ...body }));
    show(role ? "Role changed" : "Role made");
    location.hash = "#/roles";
  });
  return (
    <form onSubmit={submit}>
      <p class="note">What no statement allows is refused; one that denies wins over all that allow. It holds from the next call on.</p>
      {!role && (
        <div class="field">
          <label for="field-name">Name *</label>
          <input id="field-name" required maxLength={63} autocomplete="off" value={name} aria-invalid={fault?.field === "name" ? "true" : undefined}
            onInput={(event) => setName(event.target.value)} />
        </div>)}
      {statements.map((one, i) => <Statement key={i} number={i + 1} value={one}
        onChange={(next) => setStatements(statements.map((other, j) => (j === i ? next : other)))}
        onRemove={statements.length > 1 && (() => setStatements(statements.filter((_, j) => j !== i)))} />)}
      <div class="actions"><button type="button" onClick={() => setStatements([...statements, NEW])}>Add a statement</button></div>
      <AllActions names={names} />
      {fault && <p class="error" role="alert">{fault.message}</p>}
      <div class="actions end">
        <Link to="roles" class="button">Cancel</Link>
        <button type="submit" class="primary" disabled={isBusy}>{role ? "Save" : "Create"}</button>
      </div>
    </form>
  );
}

// One role; "new": none yet. Those that are built in are shown only.
export function Role({ name }) {
  const [role, setRole] = useState(undefined);
  const [names, setNames] = useState([]);
  useEffect(() => {
    if (name !== "new") attempt(() => get(`/v1/roles/${encodeURIComponent(name)}`)).then(setRole);
    attempt(() => get("/v1/roles/member")).then((member) => setNames(member?.statements[0].actions ?? []));
  }, [name]);
  if (name === "new") return <Page title="New role"><Editor names={names} /></Page>;
  return (
    <Page title={name}>
      {role === null && <Empty>There is no role {name}. <Link to="roles">All roles</Link></Empty>}
      {role?.built_in && (
        <div class="card">
          <p>It is built in, and stays as it is. {role.name === "admin" ? "It may do everything." : "It may:"}</p>
          {role.name !== "admin" && <p class="actions-list">{role.statements[0].actions.map((action) => <code key={action}>{action}</code>)}</p>}
        </div>)}
      {role && !role.built_in && <Editor role={role} names={names} />}
    </Page>
  );
}
