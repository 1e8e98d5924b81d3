/** The page's `localStorage`, where it has one. */

export function store(name, value) {
  try {
    if (value === null) localStorage.removeItem(name);
    else if (value !== undefined) localStorage.setItem(name, value);
    return localStorage.getItem(name);
  } catch {
    return null; // the page may not keep anything
  }
}
