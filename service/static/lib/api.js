// Requests to the service of this page: JSON, and streams of events.
//
// Every failure is a Problem. Addresses are relative to the page's own, so that a proxy's path is kept.

const KEY = "noneq.key";

let askForKey = async () => null; // asks the person for an API key: set by `onKeyWanted`
let asking = null; // its pending answer: requests that are refused together ask once
let onLost = () => {}; // called if no answer comes: set by `onUnreachable`

/** What went wrong: the service's problem document (RFC 9457), or one of the page's own. */
export class Problem extends Error {
  /**
   * @param {object} document type, title, detail; expected, received, fix if they help
   * @param {number} status of HTTP; 0 if no answer came
   * @param {number|null} retryAfter seconds
   */
  constructor(document, status = 0, retryAfter = null) {
    super(document.detail ?? document.title);
    Object.assign(this, { document, status, retryAfter });
  }

  /** Its name, which never changes: "queue-full". */
  get slug() {
    return (this.document.type ?? "").split(":").pop();
  }
}

const own = (slug, { status = 0 } = {}) => new Problem({ type: `urn:noneq:page:${slug}` }, status);

/** Whether this tab sends an API key. */
export const keyed = () => sessionStorage.getItem(KEY) !== null;

/** Set the async function that asks the person for a key, or gives null; its argument: whether one was refused. */
export const onKeyWanted = (asker) => (askForKey = asker);

/** Set the function to call if the service does not answer. */
export const onUnreachable = (listener) => (onLost = listener);

/** The address of one of the service's routes, absolute. */
export const locate = (path) => new URL(path.replace(/^\//, ""), document.baseURI.split(/[?#]/)[0]).href;

/** The JSON that a route answers. */
export async function get(path, { signal } = {}) {
  const response = await send(path, { signal, headers: { accept: "application/json" } });
  return response.json();
}

/**
 * The events of a POST, as [name, data]: "progress", "preview", and at the end "result".
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
    if (sessionStorage.getItem(KEY) !== key) continue; // another was given meanwhile
    asking ??= askForKey(key !== null).finally(() => (asking = null));
    const given = await asking;
    options.signal?.throwIfAborted();
    if (!given) throw key === null ? problem : own("key-refused", problem);
    sessionStorage.setItem(KEY, given);
  }
}

/** The result of a promise; a network failure becomes a Problem, a cancellation stays as it is. */
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
  let parts = []; // of an incomplete event: joined once, because an answer can be megabytes long
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
    reader.cancel().catch(() => {}); // which may have failed already
  }
}
