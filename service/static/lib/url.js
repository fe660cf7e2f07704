// The page's state in its address: `?view=sample&model=mnist&num_samples=8&seed=7`.
//
// Fields are strings. A link that holds a seed repeats an answer.

/** The fields of the address. */
export const read = () => Object.fromEntries(new URLSearchParams(location.search));

/** The address of some fields, those that are empty left out. */
export function address(fields) {
  const told = Object.entries(fields).filter(([, value]) => ![undefined, null, ""].includes(value));
  return `?${new URLSearchParams(told)}`;
}

/** Go to an address without loading it: a new entry of the history, or the present one's `replace`ment. */
export function write(fields, { replace = false } = {}) {
  const wanted = address(fields);
  if (wanted === location.search) return;
  if (replace) history.replaceState(null, "", wanted);
  else history.pushState(null, "", wanted);
}

/** Call back with the fields whenever history moves. */
export const onMove = (listener) => window.addEventListener("popstate", () => listener(read()));
