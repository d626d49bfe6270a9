// A copy of all objects that the user may see, kept true by the server's events.

import { listAll } from "./api.js";

export const KINDS = {
  instance: "instances", type: "types", image: "images", volume: "volumes", snapshot: "snapshots", nic: "nics", key: "keys", alarm: "alarms",
  project: "projects", operation: "operations", event: "events",
};

const nothing = () => Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, new Map()]));

class Live {
  objects = nothing();
  isConnected = false;
  isLoaded = false;
  #listeners = new Set();
  #source;
  #isScheduled = false;
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
      [kind, await listAll(plural)]));
    if (turn !== this.#turn) return;
    this.objects = nothing();
    let since = Infinity;
    for (const [kind, page] of pages) {
      this.objects[kind] = new Map(page.items.map((object) => [object.id, object]));
      since = Math.min(since, page.revision ?? 0);
    }
    this.isLoaded = true;
    this.#listen(since);
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
    this.#turn++;
  }

  #again(after) {
    const turn = this.#turn;
    setTimeout(() => { if (turn === this.#turn) this.start().catch(() => { if (turn + 1 === this.#turn) this.#again(3000); }); }, after);
  }

  #listen(since) {
    const source = new EventSource(`/v1/watch?since=${since}`);
    this.#source = source;
    let isBack = false;
    source.onopen = () => {
      this.isConnected = true;
      if (isBack) this.onReturn();
      isBack = true;
      this.#changed();
    };
    source.onerror = () => {
      this.isConnected = false;
      this.#changed();
      // The browser tries again by itself, except after an answer that is no stream.
      if (source.readyState === EventSource.CLOSED) this.#again(300);
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
