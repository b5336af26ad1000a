// The keyboard: up and down choose a study, slash searches, right shows the next page. Enter opens: links do that.
"use strict";

const links = [...document.querySelectorAll("a.open")];

function choose(step) {
  const at = links.indexOf(document.activeElement);
  const next = at < 0 ? (step > 0 ? 0 : links.length - 1) : at + step;
  links[Math.max(0, Math.min(links.length - 1, next))]?.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  const actions = {
    ArrowDown: () => choose(1),
    ArrowUp: () => choose(-1),
    ArrowRight: () => document.querySelector("a[rel=next]")?.click(),
    "/": () => document.querySelector("input[type=search]").focus(),
  };
  if (!(event.key in actions)) return;
  event.preventDefault();
  actions[event.key]();
});

for (const row of document.querySelectorAll("tbody tr")) {
  row.addEventListener("dblclick", () => row.querySelector("a.open").click());
}
