// A copy of all objects that the user may see, kept true by the server's events.

import { listAll } from "./api.js";

export const KINDS = {
  instance: "instances", type: "types", image: "images", volume: "volumes", snapshot: "snapshots", nic: "nics", key: "keys", alarm: "alarms",
  project: "projects", operation: "operations", event: "events",
};

class Live {
  objects = Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, new Map()]));
  isConnected = false;
  isLoaded = false;
  #listeners = new Set();
  #source;
  #isScheduled = false;

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
    const pages = await Promise.all(Object.entries(KINDS).map(async ([kind, plural]) =>
      [kind, await listAll(plural)]));
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

  #listen(since) {
    const source = new EventSource(`/v1/watch?since=${since}`);
    this.#source = source;
    source.onopen = () => { this.isConnected = true; this.#changed(); };
    source.onerror = () => {
      this.isConnected = false;
      this.#changed();
      // The browser tries again by itself, except after an answer that is no stream.
      if (source.readyState === EventSource.CLOSED) setTimeout(() => this.start().catch(() => {}), 3000);
    };
    for (const kind of Object.keys(KINDS)) {
      source.addEventListener(kind, (event) => {
        const change = JSON.parse(event.data);
        if (change.object) this.objects[kind].set(change.id, change.object);
        else this.objects[kind].delete(change.id);
        this.#changed();
      });
    }
    source.addEventListener("stale", () => this.start().catch(() => {}));
  }
}

export const live = new Live();
