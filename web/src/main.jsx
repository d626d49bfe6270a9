import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { get, post, remove, whenSignedOut, ApiError } from "./api.js";
import { live } from "./live.js";
import { useLive, useRoute } from "./hooks.js";
import { Alarm, Alarms } from "./alarms.jsx";
import { Nics } from "./nics.jsx";
import { Dashboard, Events, Instances, Kind, Operations, Tokens } from "./pages.jsx";
import { Volumes } from "./volumes.jsx";
import { Factor } from "./factor.jsx";
import { Launch } from "./launch.jsx";
import { Snapshots } from "./snapshots.jsx";
import { Role, Roles } from "./roles.jsx";
import { Usage } from "./usage.jsx";
import { Webhook, Webhooks } from "./webhooks.jsx";
import { Projects, Quotas, Users } from "./tenants.jsx";
import { Instance } from "./instance.jsx";
import { attempt, Empty, Form, Link, Page, show, Toasts } from "./ui.jsx";
import { Who, whoOf } from "./who.js";
import "./style.css";

const MENU = [
  ["", "Dashboard"], ["instances", "Instances"], ["images", "Images"], ["volumes", "Volumes"],
  ["snapshots", "Snapshots"], ["nics", "Network cards"],
  ["keys", "Key pairs"], ["types", "Instance types"], ["projects", "Projects"],
  ["quotas", "Quotas"], ["usage", "Usage"], ["alarms", "Alarms"], ["hooks", "Webhooks"], ["events", "Events"],
  ["operations", "Operations"], ["tokens", "API tokens"], ["users", "Users", "admin"], ["roles", "Roles", "admin"], ["second-factor", "Second factor", "user"],
];

// What a role has no use for it is not shown.
function Refused({ what }) {
  return <Page title={what}><Empty>Your role does not go so far. <Link to="">To the dashboard</Link></Empty></Page>;
}

function Body({ route, who }) {
  const [page, id, tab] = route;
  const { canChange, isAdmin } = who;
  switch (page) {
    case "": return <Dashboard />;
    case "instances": return id ? <Instance key={id} id={id} tab={tab} /> : <Instances />;
    case "launch": return canChange ? <Launch key={id} snapshot={id} /> : <Refused what="Launch instance" />;
    case "snapshots": return <Snapshots />;
    case "images": return <Kind kind="image" heading="Images" path="images"
      note={<p class="note">Images come by <code>corbel image build</code>, <code>fetch</code> and <code>import</code>.</p>} />;
    case "volumes": return <Volumes />;
    case "nics": return <Nics />;
    case "keys": return <Kind key={page} kind="key" heading="Key pairs" path="keys" canChange={canChange}
      secretOf={(answer) => answer.key.private_key} />;
    case "alarms": return id ? <Alarm key={id} id={id} /> : <Alarms />;
    case "hooks": return id ? <Webhook key={id} id={id} /> : <Webhooks />;
    case "usage": return <Usage />;
    case "types": return <Kind key={page} kind="type" heading="Instance types" path="types" canChange={isAdmin} />;
    case "projects": return <Projects />;
    case "quotas": return <Quotas />;
    case "events": return <Events />;
    case "operations": return <Operations />;
    case "tokens": return <Tokens />;
    case "second-factor": return <Factor />;
    case "roles": return !isAdmin ? <Refused what="Roles" /> : id ? <Role key={id} name={id} /> : <Roles />;
    case "users": return isAdmin ? <Users /> : <Refused what="Users" />;
    default: return <Page title="There is no such page"><Empty><Link to="">To the dashboard</Link></Empty></Page>;
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
  const [asksCode, setAsksCode] = useState(false); // the server said that this user has a second factor
  const schema = {
    required: ["name", "password", ...(asksCode ? ["code"] : [])],
    properties: { name: { type: "string" }, password: { type: "string" }, ...(asksCode && { code: { type: "string" } }) },
  };
  const signIn = async (values) => {
    try {
      await post("/v1/session", values);
    } catch (error) {
      if (error.field === "code") setAsksCode(true);
      throw error;
    }
    onDone();
  };
  useEffect(() => { if (asksCode) document.getElementById("field-code")?.focus(); }, [asksCode]);
  return (
    <main id="main" class="sign-in">
      <h1>Corbel</h1>
      <Form schema={schema} verb="Sign in" onSubmit={signIn} />
    </main>
  );
}

function Shell({ who, onSignOut }) {
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
        {state.isLoaded && !state.isConnected && !state.isPolled && <span class="badge failed" role="status">reconnecting</span>}
        <span class="who">{who.actor}</span>
        <ThemeSwitch />
        {who.actor.startsWith("user:") && <button type="button" onClick={onSignOut}>Sign out</button>}
      </header>
      <nav id="menu" class={isOpen ? "menu open" : "menu"} aria-label="Main">
        {MENU.filter(([, , whose]) => !whose || (whose === "admin" ? who.isAdmin : who.actor.startsWith("user:"))).map(([path, text]) =>
          <a key={path} href={`#/${path}`} aria-current={route[0] === path ? "page" : undefined}>{text}</a>)}
      </nav>
      <Body route={route} who={who} />
    </div>
  );
}

function App() {
  const [me, setMe] = useState(undefined); // undefined: not known yet, null: nobody
  const identify = async () => {
    try {
      const session = await get("/v1/session");
      live.forget();
      setMe(whoOf(session));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setMe(null);
      if (error.status !== 401) show(error.message, "error");
      return;
    }
    await attempt(() => live.start());
  };
  const forget = () => { live.forget(); setMe(null); };
  useEffect(() => {
    whenSignedOut(forget);
    live.onReturn = identify;
    identify();
  }, []);
  const signOut = async () => {
    live.stop();
    await remove("/v1/session").catch(() => {});
    forget();
  };
  return (
    <>
      {me === null && <SignIn onDone={identify} />}
      {me && <Who value={me}><Shell who={me} onSignOut={signOut} /></Who>}
      <Toasts />
    </>
  );
}

render(<App />, document.getElementById("app"));
