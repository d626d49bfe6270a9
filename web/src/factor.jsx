// The second factor of who has signed in: a secret for an app, confirmed by a code of it.

import { useEffect, useState } from "preact/hooks";
import { get, post } from "./api.js";
import { live } from "./live.js";
import { qrCode } from "./qr.js";
import { attempt, Badge, Empty, Form, Page } from "./ui.jsx";

const text = (description) => ({ type: "string", description });
const BEGIN = { required: ["password"], properties: { password: text("yours, again") } };
const CONFIRM = { required: ["code"], properties: { code: text("six digits that the app shows now") } };
const REMOVE = { required: ["code"], properties: { code: text("of the app, or a recovery code") } };

const inFours = (secret) => secret.match(/.{1,4}/g).join(" ");

function Off({ onBegin }) {
  return (
    <>
      <p class="note">With a second factor, signing in asks for a code of six digits from an app on your telephone, too. Your other sessions end when you set it up;
        API tokens go on without.</p>
      <Form schema={BEGIN} verb="Set up" onSubmit={async (values) => onBegin(await post("/v1/session/totp", values))} />
    </>
  );
}

// With the quiet border that readers ask for, dark on light whatever the theme is.
function Picture({ text: coded }) {
  const rows = qrCode(coded);
  if (!rows) return null;
  const side = rows.length + 8;
  const dark = rows.flatMap((row, y) => [...row.keys()].filter((x) => row[x]).map((x) => `M${x + 4} ${y + 4}h1v1h-1z`)).join("");
  return (
    <svg class="qr" viewBox={`0 0 ${side} ${side}`} role="img" aria-label="The secret as a picture for the app" shape-rendering="crispEdges">
      <rect width={side} height={side} fill="#fff" />
      <path d={dark} fill="#000" />
    </svg>
  );
}

function Confirm({ secret, onConfirmed }) {
  return (
    <>
      <p>Let your app read this picture, type the secret below it, or <a href={secret.uri}>open the app</a> if it is on this device. It is shown this once.</p>
      <Picture text={secret.uri} />
      <p><code class="secret" tabIndex={0} role="textbox" aria-readonly="true" aria-label="The secret">{inFours(secret.secret)}</code></p>
      <Form schema={CONFIRM} verb="Confirm" onSubmit={async (values) => onConfirmed((await post("/v1/session/totp/confirm", values)).recovery_codes)} />
    </>
  );
}

function Recovery({ codes, onClose }) {
  return (
    <>
      <p role="status">It is on. Each of these stands in for one code, when the telephone is lost. They are shown this once.</p>
      <pre class="secret" tabIndex={0} role="textbox" aria-readonly="true" aria-multiline="true" aria-label="Recovery codes">{codes.map(inFours).join("\n")}</pre>
      <button type="button" class="primary" onClick={onClose}>I have kept them</button>
    </>
  );
}

function On({ left, onRemoved }) {
  return (
    <>
      <dl class="facts">
        <div><dt>State</dt><dd><Badge state="on" /></dd></div>
        <div><dt>Recovery codes left</dt><dd>{left}</dd></div>
      </dl>
      <h2>Take it away</h2>
      <p>Then signing in asks for name and password only. To have new recovery codes, take it away and set it up again.</p>
      <Form schema={REMOVE} verb="Take away" onSubmit={async (values) => { await post("/v1/session/totp/remove", values); onRemoved(); }} />
    </>
  );
}

export function Factor() {
  const [me, setMe] = useState(null);
  const [secret, setSecret] = useState(null);
  const [codes, setCodes] = useState(null);
  const load = () => attempt(() => get("/v1/session")).then((session) => session && setMe(session));
  useEffect(() => { load(); }, []);
  return (
    <Page title="Second factor">
      {codes ? <Recovery codes={codes} onClose={() => { setCodes(null); load(); }} />
        : secret ? <Confirm secret={secret} onConfirmed={(made) => {
          setCodes(made);
          setSecret(null);
          attempt(() => live.start()); // the session is another one now
        }} />
          : !me ? <Empty>Loading ...</Empty>
            : me.second_factor === undefined ? <Empty>Only a user who has signed in has one.</Empty>
              : me.second_factor ? <On left={me.recovery_codes_left} onRemoved={load} /> : <Off onBegin={setSecret} />}
    </Page>
  );
}
