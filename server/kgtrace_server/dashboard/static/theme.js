// A classic script, so that it runs before the page is first drawn: a dark page must not flash white, and a frame have
// no header first.
"use strict";
document.documentElement.classList.toggle("embedded", new URLSearchParams(location.search).get("embed") === "1");
try {
  const chosen = localStorage.getItem("kgtrace-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // A browser that keeps nothing for the page: it has the theme of the system.
}
