// The parts that pages are made of.

import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { signal, show } from "./toast.js";
import { ApiError } from "./api.js";
import { when, ago } from "./format.js";

export { show };

export function Badge({ state }) {
  return <span class={`badge ${state}`}>{state}</span>;
}

export function Time({ at }) {
  return at ? <time dateTime={new Date(at * 1000).toISOString()} title={when(at)}>{ago(at)}</time> : null;
}

export function Link({ to, children, ...rest }) {
  return <a href={`#/${to}`} {...rest}>{children}</a>;
}

export function Page({ title, actions, children }) {
  const heading = useRef();
  useEffect(() => {
    document.title = `${title} - Corbel`;
  }, [title]);
  return (
    <main id="main" tabIndex={-1}>
      <div class="page-head"><h1 ref={heading}>{title}</h1><div class="actions">{actions}</div></div>
      {children}
    </main>
  );
}

export function Empty({ children }) {
  return <p class="empty">{children}</p>;
}

// columns: [{name, title, of(object), sort(object)}]. With onSelect, rows can be chosen; fixed(row) says why one cannot.
export function Table({ label, columns, rows, selected, onSelect, fixed, empty }) {
  const [order, setOrder] = useState({ name: null, isDown: false });
  const column = columns.find((c) => c.name === order.name);
  const key = column && (column.sort ?? ((row) => row[column.name] ?? ""));
  const sorted = key ? [...rows].sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    const less = typeof x === "number" ? x - y : String(x).localeCompare(String(y));
    return order.isDown ? -less : less;
  }) : rows;
  if (rows.length === 0) return <Empty>{empty}</Empty>;
  const free = onSelect ? rows.filter((row) => !fixed?.(row)) : [];
  const allChosen = free.length > 0 && free.every((row) => selected.has(row.id));
  const toggle = (id) => {
    const next = new Set(selected);
    if (!next.delete(id)) next.add(id);
    onSelect(next);
  };
  return (
    <div class="table-wrap">
      <table aria-label={label}>
        <thead>
          <tr>
            {onSelect && (
              <th class="check"><input type="checkbox" aria-label="Select all" checked={allChosen} disabled={free.length === 0}
                onChange={() => onSelect(allChosen ? new Set() : new Set(free.map((row) => row.id)))} /></th>)}
            {columns.map((c) => (
              <th key={c.name} scope="col"
                aria-sort={order.name === c.name ? (order.isDown ? "descending" : "ascending") : undefined}>
                {c.title ? (
                  <button type="button" class="sort"
                    onClick={() => setOrder({ name: c.name, isDown: order.name === c.name && !order.isDown })}>
                    {c.title}{order.name === c.name ? (order.isDown ? " ↓" : " ↑") : ""}
                  </button>) : <span class="hidden">Actions</span>}
              </th>))}
          </tr>
        </thead>
        <tbody>
          {sorted.map((row) => (
            <tr key={row.id} class={selected?.has(row.id) ? "selected" : ""}>
              {onSelect && (
                <td class="check"><input type="checkbox" aria-label={`Select ${row.name ?? row.id}`}
                  disabled={Boolean(fixed?.(row))} title={fixed?.(row)} checked={selected.has(row.id) && !fixed?.(row)} onChange={() => toggle(row.id)} /></td>)}
              {columns.map((c) => <td key={c.name} data-title={c.title}>{c.of ? c.of(row) : row[c.name]}</td>)}
            </tr>))}
        </tbody>
      </table>
    </div>
  );
}

export function Filter({ value, onInput, label }) {
  return (
    <input type="search" class="filter" aria-label={label} placeholder={label} value={value}
      onInput={(event) => onInput(event.target.value)} />
  );
}

// Rows that hold every word of the filter in some field.
export function matching(rows, filter) {
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length === 0) return rows;
  return rows.filter((row) => {
    const text = JSON.stringify(Object.values(row)).toLowerCase();
    return words.every((word) => text.includes(word));
  });
}

export function Dialog({ title, onClose, children }) {
  const dialog = useRef();
  // Whoever goes on by keyboard goes on from where it was opened, if that is still there.
  useLayoutEffect(() => {
    const opener = document.activeElement;
    dialog.current.showModal();
    return () => setTimeout(() => (opener?.isConnected && opener !== document.body ? opener : document.getElementById("main"))?.focus());
  }, []);
  return (
    <dialog ref={dialog} aria-label={title} onClose={onClose}>
      <h2>{title}</h2>
      {children}
    </dialog>
  );
}

export function Confirm({ title, text, verb, onYes, onClose }) {
  return (
    <Dialog title={title} onClose={onClose}>
      <p>{text}</p>
      <div class="actions end">
        <button type="button" onClick={onClose}>Cancel</button>
        <button type="button" class="danger" onClick={() => { onClose(); onYes(); }}>{verb}</button>
      </div>
    </Dialog>
  );
}

// One input for one field of the interface's own description. barred: why it cannot be changed now.
function Input({ name, text: called, schema, value, required, error, onInput, options, barred }) {
  const id = `field-${name}`;
  const help = error ?? [schema.description, barred].filter(Boolean).join(". ");
  const common = {
    id, name, required,
    disabled: Boolean(barred),
    "aria-invalid": error ? "true" : undefined,
    "aria-describedby": `${id}-help`,
  };
  const text = (event) => onInput(event.target.value === "" ? undefined : event.target.value);
  let input;
  if (options && schema.type === "array") {
    const chosen = new Set(value ?? []);
    const toggle = (choice) => {
      if (!chosen.delete(choice)) chosen.add(choice);
      onInput(chosen.size > 0 ? [...chosen] : undefined);
    };
    return (
      <div class="field" role="group" aria-labelledby={`${id}-label`} aria-describedby={`${id}-help`}>
        <span class="label" id={`${id}-label`}>{called}</span>
        {options.length === 0 && <small>There is none.</small>}
        {options.map((choice) => (
          <label key={choice.value} class="choice">
            <input type="checkbox" disabled={Boolean(barred)} checked={chosen.has(choice.value)} onChange={() => toggle(choice.value)} /> {choice.text}
          </label>))}
        <small id={`${id}-help`} class={error ? "error" : ""}>{help}</small>
      </div>);
  }
  if (options || schema.enum) {
    input = (
      <select {...common} value={value ?? schema.default ?? ""} onChange={text}>
        {!required && schema.default === undefined && <option value="">{NONE[name] ?? "(none)"}</option>}
        {required && value === undefined && <option value="">choose ...</option>}
        {(options ?? schema.enum.map((choice) => ({ value: choice, text: choice }))).map((choice) =>
          <option key={choice.value} value={choice.value} disabled={choice.disabled}>{choice.text}</option>)}
      </select>);
  } else if (schema.type === "boolean") {
    input = <input {...common} type="checkbox" checked={value ?? schema.default ?? false}
      onChange={(event) => onInput(event.target.checked)} />;
  } else if (schema.type === "integer" || schema.type === "number") {
    input = <input {...common} type="number" min={schema.minimum} max={schema.maximum} value={value ?? ""}
      placeholder={schema.default} onInput={(event) =>
        onInput(event.target.value === "" ? undefined : Number(event.target.value))} />;
  } else if (schema.type === "object") {
    input = <input {...common} type="text" placeholder="name=value name=value" defaultValue={writeTags(value)}
      onInput={(event) => onInput(readTags(event.target.value))} />;
  } else if (schema.type === "array" && schema.items?.type === "object") {
    input = <input {...common} type="text" placeholder="8080:80 2222:22" defaultValue={writeForwards(value)}
      onInput={(event) => onInput(readForwards(event.target.value))} />;
  } else if (schema.type === "array") {
    input = <input {...common} type="text" placeholder="name name"
      onInput={(event) => onInput(readWords(event.target.value))} />;
  } else if ((schema.maxLength ?? 0) > 1000) {
    input = <textarea {...common} rows={4} value={value ?? ""} onInput={text} />;
  } else {
    input = <input {...common} type={name === "password" ? "password" : "text"} value={value ?? ""}
      autocomplete={{ password: "new-password", code: "one-time-code" }[name] ?? "off"} onInput={text} />;
  }
  return (
    <div class="field">
      <label for={id}>{called}{required ? " *" : ""}</label>
      {input}
      <small id={`${id}-help`} class={error ? "error" : ""}>{help}</small>
    </div>
  );
}

const readWords = (text) => text.split(/[\s,]+/).filter(Boolean);
const readTags = (text) => Object.fromEntries(readWords(text).map((word) => {
  const [name, ...value] = word.split("=");
  return [name, value.join("=")];
}));
const writeTags = (tags) => Object.entries(tags ?? {}).map(([name, value]) => (value ? `${name}=${value}` : name)).join(" ");
const writeForwards = (forwards) => (forwards ?? []).map((one) => `${one.host_port}:${one.guest_port}`).join(" ");
const readForwards = (text) => readWords(text).map((word) => {
  const [host, guest] = word.split(":").map(Number);
  return { host_port: host, guest_port: guest };
});

// What it means to choose nothing, where that is something.
const NONE = { nic: "(one of its own)", network: "(where its card leads, or user)" };

// Where the interface's word alone would not do.
const TITLES = {
  max_cpus: "Most vCPUs while it runs", max_memory_mib: "Most memory while it runs (MiB)",
  cpu_weight: "CPU weight", cpu_cap_percent: "CPU cap (%)", cpu_baseline_percent: "CPU baseline (%)", cpu_reserved_percent: "CPU reserved (% of one)", pinned_cpus: "Pinned to CPUs",
  disk_bps: "Disk (bytes/s)", disk_iops: "Disk (operations/s)", net_bps: "Network (bytes/s)", net_pps: "Network (frames/s)",
  bps: "Bytes/s", iops: "Operations/s", for_s: "For (seconds)", mac: "MAC address", nic: "Network card",
};

export const title = (name) => {
  if (name in TITLES) return TITLES[name];
  const words = name.replace(/_of$/, "").replace(/^cpus$/, "vCPUs").replace(/_mib$/, " (MiB)").replace(/_gib$/, " (GiB)").replace(/_bytes$/, "").replace(/_s$/, " (seconds)").replace(/_/g, " ");
  return words.startsWith("vCPU") ? words : words[0].toUpperCase() + words.slice(1);
};

// What a form does: the handler, the refusal of the last time, and whether it is at work.
export function useSubmit(doing) {
  const [fault, setFault] = useState(null);
  const [isBusy, setBusy] = useState(false);
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    setFault(null);
    try {
      await doing();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setFault(error);
    } finally {
      setBusy(false);
    }
  };
  return [submit, fault, isBusy];
}

// A form from a schema. choices: field -> [{value, text}] where another object is named, or a function of values that gives them.
// sections: [{title, names, isDense}] puts fields in that order; what no section names comes last, as "More".
// titles: field -> its word here, where that is another. barred: field -> why it cannot be changed now. intro(values) stands above it, children(values) beside it.
export function Form({ schema, verb, initial = {}, choices = {}, barred = {}, titles = {}, sections, intro, children, onSubmit, onCancel }) {
  const [values, setValues] = useState(initial);
  const [submit, fault, isBusy] = useSubmit(() => onSubmit(values));
  const names = Object.keys(schema.properties);
  const offered = typeof choices === "function" ? choices(values) : choices;
  const set = (name, value) => setValues((before) => ({ ...before, [name]: value }));
  const input = (name) => (
    <Input key={name} name={name} text={titles[name] ?? title(name)} schema={schema.properties[name]} value={values[name]}
      required={schema.required?.includes(name)} options={offered[name]} barred={barred[name]}
      error={fault?.field === name || fault?.field?.startsWith(`${name}.`) ? fault.message : null}
      onInput={(value) => set(name, value)} />);
  const placed = new Set((sections ?? []).flatMap((section) => section.names));
  const parts = sections && [...sections, { title: "More", names: names.filter((name) => !placed.has(name)) }];
  const isShown = fault && !(fault.field && names.some((name) => fault.field === name || fault.field.startsWith(`${name}.`)));
  const fields = (
    <>
      {intro?.(values)}
      {!parts && names.map(input)}
      {parts?.map((part) => {
        const own = part.names.filter((name) => names.includes(name));
        return own.length > 0 && (
          <fieldset key={part.title}>
            <legend>{part.title}</legend>
            {part.isDense ? <div class="dense">{own.map(input)}</div> : own.map(input)}
          </fieldset>);
      })}
      {isShown && <p class="error" role="alert">{fault.message}</p>}
      <div class="actions end">
        {onCancel && <button type="button" onClick={onCancel}>Cancel</button>}
        <button type="submit" class="primary" disabled={isBusy}>{verb}</button>
      </div>
    </>);
  return (
    <form onSubmit={submit} class={children ? "wide" : undefined}>
      {children ? <div class="columns"><div>{fields}</div><aside>{children(values)}</aside></div> : fields}
    </form>
  );
}

// What a form says otherwise than it was; null takes a field back.
export function changes(before, values) {
  const differs = (name) => JSON.stringify(before[name] ?? null) !== JSON.stringify(values[name] ?? null);
  return Object.fromEntries(Object.keys({ ...before, ...values }).filter(differs).map((name) => [name, values[name] ?? null]));
}

export function Toasts() {
  const [toasts, setToasts] = useState([]);
  useEffect(() => signal(setToasts), []);
  return (
    <div class="toasts" role="status" aria-live="polite">
      {toasts.map((toast) => <div key={toast.id} class={`toast ${toast.kind}`}>{toast.text}</div>)}
    </div>
  );
}

// Does something that may be refused, and says so.
export async function attempt(doing, done) {
  try {
    const answer = await doing();
    if (done) show(done);
    return answer;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    show(error.message, "error");
    return null;
  }
}
