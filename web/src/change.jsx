// The dialog that changes some of an object's fields: they show what is, and only what differs is sent.

import { patch } from "./api.js";
import { nameOf } from "./format.js";
import { useLive } from "./hooks.js";
import { choicesFor, useSchema } from "./pages.jsx";
import { attempt, changes, Dialog, Form } from "./ui.jsx";

export const isOff = (instance) => ["stopped", "failed"].includes(instance.state);

// isIn(field) says which fields; choices(live) which more of them are chosen from a list; done(answer) what follows.
export function ChangeDialog({ object, plural, verb = "Change", heading, isIn = () => true, sections, titles, choices, intro, done, onClose }) {
  const live = useLive();
  const all = useSchema(`/v1/${plural}/{id}`, "patch");
  if (!all) return null;
  const fields = Object.entries(all.properties).filter(([name]) => isIn(name));
  const schema = { ...all, properties: Object.fromEntries(fields) };
  const before = Object.fromEntries(fields.map(([name]) => [name, object[name]]).filter(([, value]) => value !== undefined));
  const barred = Object.fromEntries(fields.filter(([, field]) => field["x-only-while"] === "stopped" && !isOff(object))
    .map(([name]) => [name, "Changed only while it is stopped"]));
  const submit = async (values) => {
    const answer = await patch(`/v1/${plural}/${object.id}`, changes(before, values));
    onClose();
    if (done) await attempt(() => done(answer));
  };
  return (
    <Dialog title={heading ?? `${verb} ${nameOf(object)}`} onClose={onClose}>
      <Form schema={schema} sections={sections} titles={titles} verb={verb} initial={before} barred={barred} intro={intro}
        choices={{ ...choicesFor(live, schema, object.project), ...choices?.(live) }} onSubmit={submit} onCancel={onClose} />
    </Dialog>
  );
}
