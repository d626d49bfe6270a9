// Who looks at the console: what it offers follows from that.

import { createContext } from "preact";
import { useContext } from "preact/hooks";

const Context = createContext({});
export const Who = Context.Provider;

// {actor, role, level, project, canChange, isAdmin}; level: the role that is built in and has all that theirs may; project: the only one that there is, for those who are bound to it.
export const useWho = () => useContext(Context);

export const whoOf = (session) => ({
  ...session,
  canChange: ["member", "admin"].includes(session.level),
  isAdmin: session.level === "admin" && !session.project,
});
