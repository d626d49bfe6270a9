import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { get, post, remove, ApiError } from "./api.js";
import { live } from "./live.js";
import { useLive, useRoute } from "./hooks.js";
import { Dashboard, Events, Instances, Kind, Operations, Tokens } from "./pages.jsx";
import { Launch } from "./launch.jsx";
import { Snapshots } from "./snapshots.jsx";
import { Projects, Quotas, Users } from "./tenants.jsx";
import { Instance } from "./instance.jsx";
import { attempt, Form, show, Toasts } from "./ui.jsx";
import "./style.css";

const MENU = [
  ["", "Dashboard"], ["instances", "Instances"], ["images", "Images"], ["volumes", "Volumes"],
  ["snapshots", "Snapshots"],
  ["keys", "Key pairs"], ["types", "Instance types"], ["projects", "Projects"],
  ["quotas", "Quotas"], ["alarms", "Alarms"], ["events", "Events"],
  ["operations", "Operations"], ["tokens", "API tokens"], ["users", "Users", "admin"],
];

function Body({ route, me }) {
  const [page, id, tab] = route;
  const isAdmin = me.role === "admin";
  const isMember = isAdmin || me.role === "member";
  switch (page) {
    case "": return <Dashboard />;
    case "instances": return id ? <Instance key={id} id={id} tab={tab} canChange={isMember} /> : <Instances />;
    case "launch": return <Launch key={id} me={me} snapshot={id} />;
    case "snapshots": return <Snapshots canChange={isMember} />;
    case "images": return <Kind kind="image" heading="Images" path="images"
      note={<p class="note">Images come by <code>corbel image build</code>, <code>fetch</code> and <code>import</code>.</p>} />;
    case "volumes": return <Kind key={page} kind="volume" heading="Volumes" path="volumes" canCreate={isMember} canDelete={isMember} />;
    case "keys": return <Kind key={page} kind="key" heading="Key pairs" path="keys" canCreate={isMember} canDelete={isMember} />;
    case "alarms": return <Kind key={page} kind="alarm" heading="Alarms" path="alarms" canCreate={isMember} canDelete={isMember}
      note={<p class="note">An alarm watches one instance, or all with a tag (NAME=VALUE), and can stop or reboot it, or call an address.</p>} />;
    case "types": return <Kind key={page} kind="type" heading="Instance types" path="types" canCreate={isAdmin} canDelete={isAdmin} />;
    case "projects": return <Projects canChange={isAdmin} />;
    case "quotas": return <Quotas canChange={isAdmin} />;
    case "events": return <Events />;
    case "operations": return <Operations />;
    case "tokens": return <Tokens />;
    case "users": return <Users />;
    default: return <main id="main"><h1>There is no such page</h1></main>;
  }
}

function ThemeSwitch() {
  const [theme, setTheme] = useState(localStorage.getItem("theme") ?? "auto");
  useEffect(() => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    localStorage.setItem("theme", theme);
  }, [theme]);
  return (
    <select aria-label="Theme" value={theme} onChange={(event) => setTheme(event.target.value)}>
      <option value="auto">System theme</option><option value="light">Light</option><option value="dark">Dark</option>
    </select>
  );
}

function SignIn({ onDone }) {
  const schema = {
    required: ["name", "password"],
    properties: { name: { type: "string" }, password: { type: "string" } },
  };
  return (
    <main id="main" class="sign-in">
      <h1>Corbel</h1>
      <Form schema={schema} verb="Sign in" onSubmit={async (values) => { await post("/v1/session", values); onDone(); }} />
    </main>
  );
}

function Shell({ me, onSignOut }) {
  const route = useRoute();
  const state = useLive();
  const [isOpen, setOpen] = useState(false);
  useEffect(() => { setOpen(false); document.getElementById("main")?.focus({ preventScroll: true }); }, [route.join("/")]);
  return (
    <div class="shell">
      <a class="skip" href="#main" onClick={(event) => { event.preventDefault(); document.getElementById("main").focus(); }}>Skip to content</a>
      <header>
        <button type="button" class="menu-button" aria-expanded={isOpen} aria-controls="menu" onClick={() => setOpen(!isOpen)}>Menu</button>
        <a class="brand" href="#/"><img src="/icon.svg" alt="" width="24" height="24" /> Corbel</a>
        <span class="spring" />
        {state.isLoaded && !state.isConnected && <span class="badge failed" role="status">reconnecting</span>}
        <span class="who">{me.actor}</span>
        <ThemeSwitch />
        {me.actor.startsWith("user:") && <button type="button" onClick={onSignOut}>Sign out</button>}
      </header>
      <nav id="menu" class={isOpen ? "menu open" : "menu"} aria-label="Main">
        {MENU.filter(([, , role]) => !role || role === me.role).map(([path, text]) =>
          <a key={path} href={`#/${path}`} aria-current={route[0] === path ? "page" : undefined}>{text}</a>)}
      </nav>
      <Body route={route} me={me} />
    </div>
  );
}

function App() {
  const [me, setMe] = useState(undefined); // undefined: not known yet, null: nobody
  const identify = async () => {
    try {
      setMe(await get("/v1/session"));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setMe(null);
      if (error.status !== 401) show(error.message, "error");
      return;
    }
    await attempt(() => live.start());
  };
  useEffect(() => { identify(); }, []);
  const signOut = async () => {
    live.stop();
    await remove("/v1/session").catch(() => {});
    setMe(null);
  };
  return (
    <>
      {me === null && <SignIn onDone={identify} />}
      {me && <Shell me={me} onSignOut={signOut} />}
      <Toasts />
    </>
  );
}

render(<App />, document.getElementById("app"));
