// One request to the service that the page came from, and what can come of it.

import * as token from "./token.js";

/** An answer takes no longer; what does has hung. Searches end by themselves after some seconds. */
const LIMIT_MS = 10_000;

/** The service has answered that it will not. */
export class Refused extends Error {
  constructor(status, error) {
    super(said(status, error));
    Object.assign(this, { status, code: error?.code ?? "", field: error?.field ?? null });
  }

  /** Whether the route is not there at all, which is another thing than that what was asked for is not. */
  get isNoRoute() {
    return this.status === 405 || (this.status === 404 && (this.code === "not_found" || this.code === ""));
  }
}

function said(status, error) {
  const message = error?.message ?? `the answer was ${status}, and not one of Tidings; is something else in between?`;
  if (status === 401) return `A token is needed: ${message}`;
  if (status === 403) return `Not allowed: ${message}`;
  return message;
}

/** Nothing has answered. */
export class Unreachable extends Error {}

/** Asks, and gives the answer as it comes. Throws `Refused` or `Unreachable`; a signal of the caller's ends it, too. */
export async function send(path, { method = "GET", body, headers = {}, signal, limit = LIMIT_MS } = {}) {
  const shown = token.get();
  const all = { Accept: "application/json", ...headers };
  if (shown !== null) all.Authorization = `Bearer ${shown}`;
  if (body !== undefined) all["Content-Type"] = "application/json";
  const [end, late] = [new AbortController(), { is: false }];
  const abort = () => end.abort();
  signal?.addEventListener("abort", abort);
  if (signal?.aborted) abort();
  const timer = limit === null ? null : setTimeout(() => ((late.is = true), abort()), limit);
  const unreachable = (error) => (signal?.aborted ? error : new Unreachable(late.is ? "it does not answer" : "nothing answers at its address"));
  let response;
  try {
    response = await fetch(path, {
      method, headers: all, signal: end.signal, cache: "no-store", redirect: "error",
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    clearTimeout(timer);
    throw unreachable(error);
  }
  if (response.ok) {
    // The body is on its way, and has to arrive as well.
    const read = (how) => async () => {
      try {
        return await response[how]();
      } catch (error) {
        throw error instanceof SyntaxError ? new Refused(response.status, null) : unreachable(error);
      } finally {
        clearTimeout(timer);
      }
    };
    return { status: response.status, headers: response.headers, body: response.body, json: read("json"), bytes: read("arrayBuffer") };
  }
  let error = null;
  try {
    error = (await response.json()).error;
  } catch {
    // A proxy has answered, or an older service.
  }
  clearTimeout(timer);
  if (response.status === 401) token.wanted(shown);
  throw new Refused(response.status, error);
}

/** The answer in JSON. */
export async function get(path, more) {
  return (await send(path, more)).json();
}

export async function post(path, body, more) {
  // A decision is one commit, and waits for those before it.
  return (await send(path, { method: "POST", body, limit: 120_000, ...more })).json();
}

/** `path?name=value`, without what is empty. */
export function query(path, values) {
  const named = Object.entries(values).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return named.length === 0 ? path : `${path}?${new URLSearchParams(named)}`;
}
