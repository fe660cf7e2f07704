// Runs one request at a time: progress, retries if the server is busy, cancelling, problems.

import { h } from "../lib/dom.js";
import { meter, notice } from "./controls.js";
import { Problem, stream } from "../lib/api.js";

const PATIENCE = 5; // how often a request is repeated if the service is busy

/**
 * The panel through which a view sends its requests; a new request cancels the last.
 *
 * `ask(path, body, { previews, onPreview })` returns the answer, or null if it was cancelled or failed;
 * `desk.node` then shows why. `cancel()` frees the server's rows.
 * @param {(text: string|[string, object]) => void} announce tells a screen reader
 * @param {() => void} again repeats a failed request; offered if that may help
 */
export function openDesk(announce, again = null) {
  let work = null;
  const bar = meter(() => cancel());
  const box = notice();

  function cancel() {
    work?.abort();
    box.hide();
  }

  async function ask(path, body, { previews = 0, onPreview = () => {} } = {}) {
    cancel();
    const mine = (work = new AbortController());
    bar.show({ state: "waiting", step: 0, seconds_left: null });
    announce("progress.started");
    try {
      const answer = await patiently(() => follow(path, body, { previews, onPreview, signal: mine.signal }), mine.signal);
      if (work === mine) announce("progress.finished");
      return work === mine ? answer : null;
    } catch (error) {
      if (work !== mine) return null;
      if (error instanceof Problem) box.show(error, isPassing(error) ? again : null);
      else if (error.name === "AbortError") announce("progress.cancelled");
      else throw error;
      return null;
    } finally {
      if (work === mine) {
        work = null;
        bar.hide();
      }
    }
  }

  async function follow(path, body, { previews, onPreview, signal }) {
    let answer = null;
    for await (const [name, data] of stream(path, body, { previews, signal })) {
      if (name === "progress") bar.show(data);
      if (name === "preview") onPreview(data);
      if (name === "result") answer = data;
    }
    return answer;
  }

  async function patiently(act, signal) {
    for (let left = PATIENCE; ; left--) {
      try {
        return await act();
      } catch (error) {
        const again = error instanceof Problem && error.status === 503 && error.retryAfter && left > 0;
        if (!again) throw error;
        await countDown(error.retryAfter, signal);
      }
    }
  }

  async function countDown(seconds, signal) {
    for (let left = seconds; left > 0; left--) {
      bar.pause(left);
      await new Promise((resolve) => setTimeout(resolve, 1000));
      signal.throwIfAborted();
    }
  }

  return { node: h("div", { class: "desk" }, bar.node, box.node), ask, cancel, busy: () => work !== null };
}

/** Whether a retry may succeed: no answer came, a key is missing, or the service is at fault. */
const isPassing = ({ status }) => status === 0 || status === 401 || status >= 500;
