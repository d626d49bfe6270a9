// Network cards: those that there are, who has them, and an instance's own with its ports.

import { useState } from "preact/hooks";
import { get, patch } from "./api.js";
import { editList, report } from "./actions.js";
import { ChangeDialog, isOff } from "./change.jsx";
import { nameOf, rate, tags } from "./format.js";
import { useLive, usePolled } from "./hooks.js";
import { List } from "./list.jsx";
import { Create, namesOf, nicsFor } from "./pages.jsx";
import { attempt, Badge, Confirm, Dialog, Empty, Form, Link, Table, Time } from "./ui.jsx";
import { useWho } from "./who.js";

export const cardName = (nic) => (nic.own ? "its own" : nameOf(nic));

const isUser = (network) => !network || network === "user";

// The bridges that the host's administrator named: [{name, ready, reason}].
function useBridges() {
  const host = usePolled(() => get("/v1/host"), 60, []);
  return host?.bridges ?? [];
}

// A form's choice of networks: the user-mode one, and the host's bridges.
export function useNetworks() {
  return [{ value: "user", text: "user: behind an address of the host" }, ...useBridges().map(({ name, ready }) =>
    ({ value: `bridge:${name}`, disabled: !ready, text: `bridge ${name}${ready ? ": on a wire of the host" : ", which is not ready"}` }))];
}

export function NewNic({ project, onClose, onDone }) {
  const networks = useNetworks();
  return <Create path="nics" heading="New network card" project={project} onClose={onClose} onDone={onDone}
    choices={() => ({ network: networks })} />;
}

// Gives a card to an instance of its project that is off.
function Attach({ nic, onClose }) {
  const live = useLive();
  const instances = live.all("instance").filter((instance) => instance.project === nic.project && isOff(instance));
  const schema = { required: ["instance"], properties: { instance: { type: "string",
    description: "one that is stopped; the card that it has now is let go, or goes when it was made with the instance" } } };
  const submit = async ({ instance: name }) => {
    const instance = instances.find((one) => nameOf(one) === name);
    const answer = await patch(`/v1/instances/${instance.id}`, { nic: nic.id });
    onClose();
    await attempt(() => report(answer, name, `${name} has ${nameOf(nic)} from its next start on`));
  };
  return (
    <Dialog title={`Attach ${nameOf(nic)}`} onClose={onClose}>
      {instances.length === 0 ? <>
        <Empty>No instance of its project is stopped: a card comes and goes while its instance is off.</Empty>
        <div class="actions end"><button type="button" onClick={onClose}>Close</button></div></>
        : <Form schema={schema} verb="Attach" choices={{ instance: namesOf(instances) }} onSubmit={submit} onCancel={onClose} />}
    </Dialog>
  );
}

function Detach({ nic, onClose }) {
  const live = useLive();
  const instance = live.find("instance", nic.instance);
  return <Confirm title={`Detach ${nameOf(nic)}`} verb="Detach" onClose={onClose}
    text={`${nameOf(instance)} gets a new card of its own, with another address.`}
    onYes={() => attempt(() => patch(`/v1/instances/${instance.id}`, { nic: null }), `${nameOf(nic)} is free`)} />;
}

function Actions({ nic, onAct }) {
  const live = useLive();
  const name = nameOf(nic);
  const instance = nic.instance && live.find("instance", nic.instance);
  const isFree = nic.state === "available";
  return (
    <span class="actions">
      {isFree && <button type="button" aria-label={`Attach ${name}`} onClick={() => onAct("attach", nic)}>Attach</button>}
      {instance && !nic.own && <button type="button" aria-label={`Detach ${name}`} disabled={!isOff(instance)}
        title={isOff(instance) ? "" : "while its instance is stopped"} onClick={() => onAct("detach", nic)}>Detach</button>}
      <button type="button" aria-label={`Change ${name}`} onClick={() => onAct("change", nic)}>Change</button>
    </span>
  );
}

export function Nics() {
  const live = useLive();
  const broken = useBridges().filter((bridge) => !bridge.ready);
  const { canChange, isAdmin } = useWho();
  const [act, setAct] = useState(null);
  const close = () => setAct(null);
  const owner = (nic) => live.find("instance", nic.instance);
  const instance = (nic) => (owner(nic) ? <Link to={`instances/${nic.instance}/network`}>{nameOf(owner(nic))}</Link> : nic.instance);
  const [verb, nic] = act ?? [];
  return (
    <>
      <List heading="Network cards" plural="nics" rows={live.all("nic")} canDelete={canChange}
        fixed={(one) => (one.own ? "it goes with its instance" : one.state !== "available" && "an instance has it")}
        create={canChange && ((onClose) => <NewNic onClose={onClose} />)}
        note={<>
          <p class="note">A card keeps its address whoever has it, and goes from one instance to another while they are stopped. Each
            instance for which none was chosen has one of its own, which goes with it.</p>
          {isAdmin && broken.map(({ name, reason }) => <p key={name} class="note warn">The bridge {name} is not ready: {reason}</p>)}</>}
        columns={[
          { name: "name", title: "Name", sort: nameOf, of: (one) => (one.own ? <span class="muted">own of {owner(one) ? nameOf(owner(one)) : one.instance}</span> : nameOf(one)) },
          { name: "mac", title: "MAC address", of: (one) => <code>{one.mac}</code> },
          { name: "network", title: "Network" },
          { name: "state", title: "State", of: (one) => <Badge state={one.state} /> },
          { name: "instance", title: "Instance", of: instance, sort: (one) => (owner(one) ? nameOf(owner(one)) : "") },
          { name: "tags", title: "Tags", of: tags },
          { name: "created", title: "Age", of: (one) => <Time at={one.created} />, sort: (one) => one.created ?? 0 },
          ...(canChange ? [{ name: "actions", title: "", of: (one) => <Actions nic={one} onAct={(...what) => setAct(what)} /> }] : []),
        ]} />
      {verb === "attach" && <Attach nic={nic} onClose={close} />}
      {verb === "detach" && <Detach nic={nic} onClose={close} />}
      {verb === "change" && <ChangeDialog object={nic} plural="nics" onClose={close} />}
    </>
  );
}

/* ---- an instance's ---- */

export const addressTitle = (nic) => (isUser(nic?.network) ? "Address inside" : "Address");

const RATES = ["net_bps", "net_pps"];
const ratesOf = (instance) => [instance.net_bps && `${rate(instance.net_bps)}B/s`, instance.net_pps && `${rate(instance.net_pps)}frames/s`]
  .filter(Boolean).join(", ") || "no limit";

function AddForward({ instance, onClose }) {
  const schema = { required: ["guest_port"], properties: {
    guest_port: { type: "integer", minimum: 1, maximum: 65535, description: "the port inside that is reached" },
    host_port: { type: "integer", minimum: 0, maximum: 65535, description: "of the host's 127.0.0.1; none, or 0: a free one" } } };
  const submit = async ({ guest_port: guest, host_port: host = 0 }) => {
    const answer = await editList(instance.id, "forwards", (forwards) => [...forwards, { host_port: host, guest_port: guest }]);
    onClose();
    await attempt(() => report(answer, nameOf(instance), `Port ${guest} is forwarded`));
  };
  return (
    <Dialog title={`Forward a port of ${nameOf(instance)}`} onClose={onClose}>
      <Form schema={schema} verb="Add" onSubmit={submit} onCancel={onClose} />
    </Dialog>
  );
}

// Those that are wanted, each with the port that it has, and the one for ssh that is always there.
function forwardsOf(instance) {
  const open = [...(instance.ports ?? [])];
  const take = (fits) => { const i = open.findIndex(fits); return i < 0 ? undefined : open.splice(i, 1)[0]; };
  const wanted = (instance.forwards ?? []).map((forward, i) => {
    const port = take((one) => one.guest_port === forward.guest_port && (forward.host_port === 0 || one.host_port === forward.host_port));
    return { id: `${i}`, forward, guest: forward.guest_port, host: port?.host_port ?? forward.host_port, isOpen: Boolean(port) };
  });
  return [...wanted, ...open.map((port) => ({ id: `open-${port.host_port}`, guest: port.guest_port, host: port.host_port, isOpen: true }))];
}

function Forwards({ instance, canChange }) {
  const [isAdding, setAdding] = useState(false);
  const mayChange = canChange && (isOff(instance) || ["running", "paused"].includes(instance.state));
  const same = (a, b) => a.host_port === b.host_port && a.guest_port === b.guest_port;
  const drop = (row) => attempt(async () => {
    const answer = await editList(instance.id, "forwards", (forwards) => forwards.filter((one) => !same(one, row.forward)));
    await report(answer, nameOf(instance), `Port ${row.guest} is forwarded no more`);
  });
  return (
    <section aria-label="Forwarded ports">
      <div class="page-head"><h2>Forwarded ports</h2>
        {mayChange && <div class="actions"><button type="button" onClick={() => setAdding(true)}>Add forward</button></div>}</div>
      <Table label="Forwarded ports" rows={forwardsOf(instance)} empty="No port leads into it."
        columns={[
          { name: "host", title: "Of the host", of: (row) => (row.host ? `127.0.0.1:${row.host}` : "a free port of 127.0.0.1") },
          { name: "guest", title: "Inside" },
          { name: "isOpen", title: "State", of: (row) => <Badge state={row.isOpen ? "open" : isOff(instance) ? "closed" : "opening"} /> },
          ...(mayChange ? [{ name: "remove", title: "", of: (row) => (row.forward
            ? <button type="button" class="danger" aria-label={`Remove the forward to ${row.guest}`} onClick={() => drop(row)}>Remove</button>
            : <span class="muted">for ssh</span>) }] : []),
        ]} />
      {isAdding && <AddForward instance={instance} onClose={() => setAdding(false)} />}
    </section>
  );
}

// What the guest itself says of its network, where its agent answers.
function Inside({ instance }) {
  const answer = usePolled(() => get(`/v1/instances/${instance.id}/agent`), 15, [instance.id]);
  const rows = (answer?.agent?.interfaces ?? []).map((one) => ({ ...one, id: one.name }));
  if (rows.length === 0) return null;
  const addresses = (one) => one.addresses.map(({ address, prefix }) => `${address}/${prefix}`).join(", ");
  return (
    <section aria-label="As the guest says">
      <h2>As the guest says</h2>
      <Table label="Interfaces of the guest" rows={rows} columns={[
        { name: "name", title: "Interface" }, { name: "mac", title: "MAC address", of: (one) => <code>{one.mac}</code> },
        { name: "addresses", title: "Addresses", of: addresses }]} />
    </section>
  );
}

export function NetworkOf({ instance }) {
  const live = useLive();
  const { canChange } = useWho();
  const networks = useNetworks();
  const [dialog, setDialog] = useState(null);
  const nic = live.find("nic", instance.nic);
  const close = () => setDialog(null);
  const facts = [["Network", nic?.network], ["MAC address", nic && <code>{nic.mac}</code>], ["Card", nic && cardName(nic)],
    [addressTitle(nic), instance.address], ["Limits, each way", ratesOf(instance)]].filter(([, value]) => value);
  return (
    <>
      <section aria-label="Network card">
        <div class="page-head"><h2>Network card</h2>
          {canChange && <div class="actions">
            <button type="button" onClick={() => setDialog("limits")}>Change limits</button>
            <button type="button" disabled={!isOff(instance)} title={isOff(instance) ? "" : "while the instance is stopped"}
              onClick={() => setDialog("card")}>Change card</button></div>}</div>
        <dl class="facts">{facts.map(([name, value]) => <div key={name}><dt>{name}</dt><dd>{value}</dd></div>)}</dl>
      </section>
      {isUser(nic?.network) ? <Forwards instance={instance} canChange={canChange} />
        : <p class="note">On {nic.network} it has an address of its own: ports are not forwarded.</p>}
      {instance.state === "running" && instance.agent === "connected" && <Inside instance={instance} />}
      {dialog === "limits" && <ChangeDialog object={instance} plural="instances" heading={`Limits of the network of ${nameOf(instance)}`}
        isIn={(name) => RATES.includes(name)} onClose={close} done={(answer) => report(answer, nameOf(instance), "The new limits hold")} />}
      {dialog === "card" && <ChangeDialog object={instance} plural="instances" heading={`Network card of ${nameOf(instance)}`}
        isIn={(name) => ["nic", "network"].includes(name)} onClose={close}
        choices={() => ({ nic: nicsFor(live, instance.project, instance), network: networks })}
        done={(answer) => report(answer, nameOf(instance), "It has another card from its next start on")} />}
    </>
  );
}
