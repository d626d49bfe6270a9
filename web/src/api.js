// Calls of the REST interface. Nothing else in the console talks to the server, but live.js
// (events) and terminal.jsx (a socket).

export class ApiError extends Error {
  constructor(status, error) {
    super(error?.message ?? `the server answered ${status}`);
    this.status = status;
    this.code = error?.code ?? "unknown";
    this.field = error?.field;
  }
}

let onSignedOut = () => {};
// Called when the server knows the caller no more.
export const whenSignedOut = (listener) => { onSignedOut = listener; };

export async function call(method, path, body) {
  const headers = {};
  if (body !== undefined) headers["content-type"] = "application/json";
  if (method !== "GET") headers["x-csrf-token"] = "1"; // no other origin's page can send it
  let response;
  try {
    response = await fetch(path, {
      method, headers, body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new ApiError(0, { code: "unreachable", message: "the server cannot be reached" });
  }
  const answer = await response.json().catch(() => null);
  if (response.status === 401 && path !== "/v1/session") onSignedOut();
  if (!response.ok) throw new ApiError(response.status, answer?.error);
  return answer;
}

export const get = (path) => call("GET", path);
export const post = (path, body) => call("POST", path, body);
export const patch = (path, body) => call("PATCH", path, body);
export const remove = (path) => call("DELETE", path);

// All pages of a list.
export async function listAll(plural) {
  const items = [];
  let cursor;
  let revision;
  do {
    const page = await get(`/v1/${plural}?limit=500${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`);
    items.push(...page.items);
    revision ??= page.revision;
    cursor = page.next;
  } while (cursor);
  return { items, revision };
}
