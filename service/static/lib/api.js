// Sends requests to the page's service, and reads JSON and event streams.
//
// Every failure is a Problem. Addresses are relative to the page's, to keep a proxy's path.

const KEY = "noneq.key";

let askForKey = async () => null; // asks the person for an API key: set by `onKeyWanted`
let asking = null; // the pending key, so that requests refused together ask once
let onLost = () => {}; // called if the service does not answer: set by `onUnreachable`

/** What went wrong: the service's problem document (RFC 9457), or one of the page's own. */
export class Problem extends Error {
  /**
   * @param {object} document type, title, detail; expected, received, fix if they help
   * @param {number} status the HTTP status; 0 if no answer came
   * @param {number|null} retryAfter seconds
   */
  constructor(document, status = 0, retryAfter = null) {
    super(document.detail ?? document.title);
    Object.assign(this, { document, status, retryAfter });
  }

  /** The problem's stable name, such as "queue-full". */
  get slug() {
    return (this.document.type ?? "").split(":").pop();
  }
}

const own = (slug, { status = 0 } = {}) => new Problem({ type: `urn:noneq:page:${slug}` }, status);

/** Whether this tab sends an API key. */
export const keyed = () => sessionStorage.getItem(KEY) !== null;

/** Set the async function that asks the person for a key or returns null; its argument: whether one was refused. */
export const onKeyWanted = (asker) => (askForKey = asker);

/** Set the function to call if the service does not answer. */
export const onUnreachable = (listener) => (onLost = listener);

/** The absolute address of one of the service's routes. */
export const locate = (path) => new URL(path.replace(/^\//, ""), document.baseURI.split(/[?#]/)[0]).href;

/** Get a route's JSON. */
export async function get(path, { signal } = {}) {
  const response = await send(path, { signal, headers: { accept: "application/json" } });
  return response.json();
}

/**
 * Yield the events of a POST as [name, data]: "progress", "preview", and at the end "result".
 *
 * Leaving the loop, or aborting the signal, closes the connection, and the service frees the rows.
 * @param {string} path
 * @param {object} body
 * @param {{previews?: number, signal?: AbortSignal}} options
 */
export async function* stream(path, body, { previews = 0, signal } = {}) {
  const accept = `text/event-stream${previews ? `; previews=${previews}` : ""}`;
  const headers = { accept, "content-type": "application/json" };
  const response = await send(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  let ended = false;
  for await (const [name, data] of events(response.body, signal)) {
    if (name === "error") throw new Problem(data, data.status, data.retry_after ?? null);
    ended ||= name === "result";
    yield [name, data];
  }
  if (ended) return;
  onLost();
  throw own("connection-lost");
}

async function send(path, options) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
    const response = await reach(() => fetch(locate(path), { ...options, headers }), "unreachable");
    if (response.ok) return response;
    const problem = await refusal(response);
    if (problem.status !== 401) throw problem;
    if (sessionStorage.getItem(KEY) !== key) continue; // another key was entered meanwhile
    asking ??= askForKey(key !== null).finally(() => (asking = null));
    const given = await asking;
    options.signal?.throwIfAborted();
    if (!given) throw key === null ? problem : own("key-refused", problem);
    sessionStorage.setItem(KEY, given);
  }
}

/** Await a promise, turning a network failure into a Problem; a cancellation is passed on. */
async function reach(act, slug) {
  try {
    return await act();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    onLost();
    throw own(slug);
  }
}

async function refusal(response) {
  const seconds = Number(response.headers.get("retry-after")) || null;
  const kind = response.headers.get("content-type") ?? "";
  const found = kind.includes("json") ? await response.json().catch(() => null) : null;
  const document = found ?? { title: `HTTP ${response.status}`, detail: response.statusText };
  return new Problem(document, response.status, seconds);
}

async function* events(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let parts = []; // parts of an incomplete event, joined once, because an answer can take megabytes
  try {
    for (;;) {
      const { done, value } = await reach(() => reader.read(), "connection-lost");
      signal?.throwIfAborted();
      if (done) return;
      const last = parts.at(-1)?.at(-1) ?? "";
      parts.push(value);
      if (!(last + value).includes("\n\n")) continue;
      const blocks = parts.join("").split("\n\n");
      parts = [blocks.pop()];
      for (const block of blocks) {
        const found = /^event: ([^\n]*)\ndata: ([^\n]*)$/.exec(block); // the others are comments
        if (found) yield [found[1], JSON.parse(found[2])];
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // the stream may have failed already
  }
}
