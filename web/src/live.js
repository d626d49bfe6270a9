// A copy of all objects that the user may see, kept true by the server's events.

import { listAll } from "./api.js";

export const KINDS = {
  instance: "instances", type: "types", image: "images", volume: "volumes", snapshot: "snapshots", nic: "nics", key: "keys", alarm: "alarms", hook: "hooks",
  project: "projects", operation: "operations", event: "events",
};

// Of a kind that the role does not list there is nothing to see.
const allowNone = (error) => {
  if (error.status !== 403) throw error;
  return { items: [], revision: Infinity };
};

const nothing = () => Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, new Map()]));

class Live {
  objects = nothing();
  isConnected = false;
  isLoaded = false;
  isPolled = false; // the role has no right to events: the lists are asked for again and again
  #listeners = new Set();
  #source;
  #isScheduled = false;
  #refusals = 0; // of streams, one after another
  #turn = 0; // of start() and forget(): what an earlier one still waits for is void
  onReturn = () => {}; // the server was away, or ended the stream: the user may be another to it

  subscribe(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  // Many events make one picture: listeners run once a frame.
  #changed() {
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    requestAnimationFrame(() => {
      this.#isScheduled = false;
      for (const listener of this.#listeners) listener();
    });
  }

  all(kind) {
    return [...this.objects[kind].values()];
  }

  find(kind, id) {
    return this.objects[kind].get(id) ?? this.all(kind).find((object) => object.name === id);
  }

  async start() {
    this.stop();
    const turn = ++this.#turn;
    const pages = await Promise.all(Object.entries(KINDS).map(async ([kind, plural]) =>
      [kind, await listAll(plural).catch(allowNone)]));
    if (turn !== this.#turn) return;
    this.objects = nothing();
    let since = Infinity;
    for (const [kind, page] of pages) {
      this.objects[kind] = new Map(page.items.map((object) => [object.id, object]));
      since = Math.min(since, page.revision ?? 0);
    }
    this.isLoaded = true;
    if (since === Infinity) this.#poll();
    else this.#listen(since);
    this.#changed();
  }

  stop() {
    this.#source?.close();
    this.#source = undefined;
    this.isConnected = false;
  }

  // What one user saw is not for the next.
  forget() {
    this.stop();
    this.objects = nothing();
    this.isLoaded = false;
    this.isPolled = false;
    this.#refusals = 0;
    this.#turn++;
  }

  #again(after) {
    const turn = this.#turn;
    setTimeout(() => { if (turn === this.#turn) this.start().catch(() => { if (turn + 1 === this.#turn) this.#again(3000); }); }, after);
  }

  #poll() {
    this.isPolled = true;
    this.#again(5000);
  }

  #listen(since) {
    const source = new EventSource(`/v1/watch?since=${since}`);
    this.#source = source;
    let isBack = false;
    source.onopen = () => {
      this.isConnected = true;
      this.isPolled = false;
      if (isBack) this.onReturn();
      isBack = true;
      this.#refusals = 0;
      this.#changed();
    };
    source.onerror = () => {
      this.isConnected = false;
      this.#changed();
      // The browser tries again by itself, except after an answer that is no stream.
      if (source.readyState !== EventSource.CLOSED) return;
      if (isBack || this.#refusals++ === 0) this.#again(300);
      else this.#poll();
    };
    for (const kind of Object.keys(KINDS)) {
      source.addEventListener(kind, (event) => {
        const change = JSON.parse(event.data);
        if (change.object) this.objects[kind].set(change.id, change.object);
        else this.objects[kind].delete(change.id);
        this.#changed();
      });
    }
    source.addEventListener("stale", () => this.#again(0));
  }
}

export const live = new Live();
