// A classic script, so that it runs before the page is first drawn: a dark page must not flash white.
"use strict";
{
  const chosen = localStorage.getItem("kgtrace-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
}
