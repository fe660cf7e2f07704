// The page's state in its address: `?view=sample&model=mnist&num_samples=8&seed=7`.
//
// Fields are strings. A link with a seed reproduces an answer.

/** The fields of the address. */
export const read = () => Object.fromEntries(new URLSearchParams(location.search));

/** The address for some fields, without the empty ones. */
export function address(fields) {
  const told = Object.entries(fields).filter(([, value]) => ![undefined, null, ""].includes(value));
  return `?${new URLSearchParams(told)}`;
}

/** Change the address without loading it: add a history entry, or `replace` the current one. */
export function write(fields, { replace = false } = {}) {
  const wanted = address(fields);
  if (wanted === location.search) return;
  if (replace) history.replaceState(null, "", wanted);
  else history.pushState(null, "", wanted);
}

/** Call back with the fields whenever the history moves. */
export const onMove = (listener) => window.addEventListener("popstate", () => listener(read()));
