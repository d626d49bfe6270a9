// Webhooks: addresses that are told what happens, and what became of that.

import { useState } from "preact/hooks";
import { deleteAll } from "./actions.js";
import { ChangeDialog } from "./change.jsx";
import { nameOf, tags, when } from "./format.js";
import { useLive } from "./hooks.js";
import { List } from "./list.jsx";
import { Create, EventTable, Once } from "./pages.jsx";
import { Badge, Confirm, Empty, Link, Page, Table, Time } from "./ui.jsx";
import { useWho } from "./who.js";

const PARTS = [
  { title: "What it is", names: ["name", "project_of", "tags"] },
  { title: "Who is told", names: ["webhook", "secret"] },
  { title: "Of what", names: ["action", "level"], isDense: true },
];
const TITLES = { webhook: "Address", action: "Events that begin with", level: "From this level on" };
const forText = ({ action, level = "info" }) => `${action ? `${action}*` : "all events"}${level === "info" ? "" : `, ${level}${level === "warning" ? " and error" : ""}`}`;

const lastOf = (hook) => hook.deliveries?.[0];

export function Webhooks() {
  const live = useLive();
  const { canChange } = useWho();
  const [made, setMade] = useState(null);
  return (
    <>
      <List heading="Webhooks" plural="hooks" rows={live.all("hook")} canDelete={canChange}
        create={canChange && ((onClose) => <Create path="hooks" heading="New webhook" sections={PARTS} titles={TITLES} onClose={onClose}
          onDone={(answer) => setMade(answer.hook.secret ?? null)} />)}
        note={<p class="note">A webhook is an address that is told, by POST, of each event of its project that it is for, from its creation on.</p>}
        columns={[
          { name: "name", title: "Name", of: (hook) => <Link to={`hooks/${hook.id}`}>{nameOf(hook)}</Link>, sort: nameOf },
          { name: "state", title: "State", of: (hook) => <Badge state={hook.state} /> },
          { name: "action", title: "Of what", of: forText, sort: forText },
          { name: "webhook", title: "Address" },
          { name: "last", title: "Last told", of: (hook) => <Time at={lastOf(hook)?.time} />, sort: (hook) => lastOf(hook)?.time ?? 0 },
          { name: "told", title: "Told", sort: (hook) => hook.told ?? 0 },
          { name: "lost", title: "Lost", sort: (hook) => hook.lost ?? 0 },
        ]} />
      {made && <Once title="The secret that signs what is told" secret={made} onClose={() => setMade(null)} />}
    </>
  );
}

function Deliveries({ hook }) {
  const live = useLive();
  const rows = (hook.deliveries ?? []).map((one) => ({ ...one, id: one.event }));
  return (
    <Table label="Deliveries" rows={rows} empty="It was told of nothing yet."
      columns={[
        { name: "time", title: "When", of: (one) => <span title={when(one.time)}><Time at={one.time} /></span>, sort: (one) => one.time },
        { name: "state", title: "State", of: (one) => <Badge state={one.state} /> },
        { name: "action", title: "Event" },
        { name: "text", title: "In words", of: (one) => live.objects.event.get(one.event)?.text },
        { name: "status", title: "Answer", of: (one) => (one.status ? `${one.status} after ${one.took_ms} ms` : "none") },
        { name: "tries", title: "Tries" },
        { name: "error", title: "Why not" },
      ]} />
  );
}

export function Webhook({ id }) {
  const live = useLive();
  const { canChange } = useWho();
  const [dialog, setDialog] = useState(null);
  const hook = live.find("hook", id);
  if (!hook) return <Page title="Webhook"><Empty>There is no webhook {id}. <a href="#/hooks">All webhooks</a></Empty></Page>;
  const facts = [
    ["State", <Badge state={hook.state} />], ["Address", hook.webhook], ["Of what", forText(hook)],
    ["Told", String(hook.told ?? 0)], ["Lost", String(hook.lost ?? 0)], ["Tags", tags(hook)], ["Created", <Time at={hook.created} />],
  ].filter(([, value]) => value);
  const events = live.all("event").filter((event) => event.target === hook.id).sort((a, b) => (b.created ?? 0) - (a.created ?? 0)).slice(0, 200);
  return (
    <Page title={nameOf(hook)} actions={canChange && <>
      <button type="button" onClick={() => setDialog("change")}>Change</button>
      <button type="button" class="danger" onClick={() => setDialog("delete")}>Delete</button></>}>
      <dl class="facts">{facts.map(([name, value]) => <div key={name}><dt>{name}</dt><dd>{value}</dd></div>)}</dl>
      <h2>Last deliveries</h2>
      <Deliveries hook={hook} />
      <h2>What happened to it</h2>
      <EventTable events={events} />
      {dialog === "change" && <ChangeDialog object={hook} plural="hooks" sections={PARTS} titles={{ ...TITLES, secret: "Another secret" }} onClose={() => setDialog(null)} />}
      {dialog === "delete" && <Confirm title="Delete webhook" verb="Delete" onClose={() => setDialog(null)}
        text={`${hook.webhook} is told no more, also of what it was not told yet.`}
        onYes={() => { deleteAll("hooks", [hook]); location.hash = "#/hooks"; }} />}
    </Page>
  );
}
