// Who looks at the console: what it offers follows from that.

import { createContext } from "preact";
import { useContext } from "preact/hooks";

const Context = createContext({});
export const Who = Context.Provider;

// {actor, role, project, canChange, isAdmin}; project: the only one that there is, for those who are bound to it.
export const useWho = () => useContext(Context);

export const whoOf = (session) => ({
  ...session,
  canChange: ["member", "admin"].includes(session.role),
  isAdmin: session.role === "admin" && !session.project,
});
