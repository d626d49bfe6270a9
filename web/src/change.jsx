// The dialog that changes some of an instance's fields: they show what is, and only what differs is sent.

import { patch } from "./api.js";
import { useLive } from "./hooks.js";
import { choicesFor, useSchema } from "./pages.jsx";
import { changes, Dialog, Form } from "./ui.jsx";

export const isOff = (instance) => ["stopped", "failed"].includes(instance.state);

// isIn(field) says which fields; choices(live) which more of them are chosen from a list.
export function ChangeDialog({ instance, verb, isIn, sections, choices, intro, done, onClose }) {
  const live = useLive();
  const all = useSchema("/v1/instances/{id}", "patch");
  if (!all) return null;
  const fields = Object.entries(all.properties).filter(([name]) => isIn(name));
  const schema = { ...all, properties: Object.fromEntries(fields) };
  const before = Object.fromEntries(fields.map(([name]) => [name, instance[name]]).filter(([, value]) => value !== undefined));
  const barred = Object.fromEntries(fields.filter(([, field]) => field["x-only-while"] === "stopped" && !isOff(instance))
    .map(([name]) => [name, "Changed only while it is stopped"]));
  const submit = async (values) => {
    const answer = await patch(`/v1/instances/${instance.id}`, changes(before, values));
    onClose();
    await done?.(answer);
  };
  return (
    <Dialog title={`${verb} ${instance.name ?? instance.id}`} onClose={onClose}>
      <Form schema={schema} sections={sections} verb={verb} initial={before} barred={barred} intro={intro}
        choices={{ ...choicesFor(live, schema), ...choices?.(live) }} onSubmit={submit} onCancel={onClose} />
    </Dialog>
  );
}
