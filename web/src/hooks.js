import { useEffect, useLayoutEffect, useReducer, useState } from "preact/hooks";
import { live } from "./live.js";

// What is listened to here is so from the moment of drawing on: effects would come frames later, and
// what changed until then be missed.
export function useLive() {
  const [, redraw] = useReducer((count) => count + 1, 0);
  useLayoutEffect(() => live.subscribe(redraw), []);
  return live;
}

export function useRoute() {
  const read = () => {
    try { return decodeURIComponent(location.hash.slice(2)).split("/"); } catch { return ["?"]; } // typed by hand
  };
  const [route, setRoute] = useState(read);
  useLayoutEffect(() => {
    const changed = () => setRoute(read());
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return route;
}

// What a function answers, asked again every so many seconds while the page is seen.
export function usePolled(ask, seconds, inputs) {
  const [value, setValue] = useState(null);
  useEffect(() => {
    let isOver = false;
    const poll = async () => {
      if (document.visibilityState === "hidden") return;
      const answer = await ask().catch(() => null);
      if (!isOver) setValue(answer);
    };
    poll();
    const timer = setInterval(poll, seconds * 1000);
    return () => { isOver = true; clearInterval(timer); };
  }, inputs);
  return value;
}
