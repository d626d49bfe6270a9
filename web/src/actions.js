// What can be done to objects, and when.

import { get, patch, post, remove } from "./api.js";
import { attempt, show } from "./ui.jsx";

export const ACTIONS = [
  { name: "start", title: "Start", from: ["stopped", "failed"] },
  { name: "stop", title: "Stop", from: ["running", "paused"] },
  { name: "restart", title: "Restart", from: ["running"] },
  { name: "pause", title: "Pause", from: ["running"] },
  { name: "resume", title: "Resume", from: ["paused"] },
];

export const canDo = (action, instance) => action.from.includes(instance.state);

export async function actOn(action, instances) {
  const fit = instances.filter((instance) => canDo(action, instance));
  const done = await Promise.all(fit.map((instance) =>
    attempt(() => post(`/v1/instances/${instance.id}/${action.name}`))));
  const count = done.filter(Boolean).length;
  if (count > 0) show(`${action.title}: ${count} instance${count > 1 ? "s" : ""}`);
}

// Waits for the operation of an answer, if there is one: as it ended.
export async function finish({ operation }) {
  while (operation && ["pending", "running"].includes(operation.state)) {
    operation = await get(`/v1/operations/${operation.id}/wait`);
  }
  return operation;
}

// ... and says how it ended.
export async function report(answer, name, done) {
  const operation = await finish(answer);
  if (operation?.state === "failed") show(`${name}: ${operation.error}`, "error");
  else show(done);
}

// Changes a list that is a field of an instance, whoever else changes that instance meanwhile.
export async function editList(id, field, change) {
  for (let tries = 0; ; tries++) {
    const now = await get(`/v1/instances/${id}`);
    try {
      return await patch(`/v1/instances/${id}?revision=${now.revision}`, { [field]: change(now[field] ?? []) });
    } catch (error) {
      if (error.code !== "stale" || tries === 4) throw error;
    }
  }
}

export async function deleteAll(plural, objects) {
  const done = await Promise.all(objects.map((object) =>
    attempt(() => remove(`/v1/${plural}/${object.id}`))));
  const count = done.filter(Boolean).length;
  if (count > 0) show(`${count} deleted`);
}
