// The serial console of a running instance.

import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { Terminal } from "@xterm/xterm";
import { FitAddon } from "@xterm/addon-fit";
import "@xterm/xterm/css/xterm.css";

export function Console({ instance }) {
  const place = useRef();
  const [state, setState] = useState("connecting");
  const [attempt, setAttempt] = useState(0);
  useLayoutEffect(() => {
    const terminal = new Terminal({ cursorBlink: true, fontSize: 14, scrollback: 5000 });
    const fit = new FitAddon();
    terminal.loadAddon(fit);
    terminal.open(place.current);
    fit.fit();
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}/v1/instances/${instance.id}/console`);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => { setState("connected"); terminal.focus(); };
    socket.onclose = () => setState("closed");
    socket.onmessage = (event) => terminal.write(new Uint8Array(event.data));
    const encoder = new TextEncoder();
    terminal.onData((text) => {
      if (socket.readyState === WebSocket.OPEN) socket.send(encoder.encode(text));
    });
    const resized = new ResizeObserver(() => fit.fit());
    resized.observe(place.current);
    return () => { resized.disconnect(); socket.close(); terminal.dispose(); };
  }, [instance.id, attempt]);
  return (
    <section aria-label="Serial console">
      <div class="console-bar">
        <span class={`badge ${state === "connected" ? "running" : "stopped"}`}>{state}</span>
        {state === "closed" &&
          <button type="button" onClick={() => { setState("connecting"); setAttempt(attempt + 1); }}>Reconnect</button>}
      </div>
      <div class="console" ref={place} />
    </section>
  );
}
