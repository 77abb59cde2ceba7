// What the browser keeps for the page; where it keeps nothing, as in some frames, what this page keeps for itself.

/** @param {"localStorage" | "sessionStorage"} name */
function usable(name) {
  try {
    globalThis[name].getItem("");
    return globalThis[name];
  } catch {
    const held = new Map();
    return { getItem: (key) => held.get(key) ?? null, setItem: (key, value) => held.set(key, value) };
  }
}

/** Kept for good. */
export const local = usable("localStorage");

/** Kept for as long as the tab is open. */
export const session = usable("sessionStorage");
