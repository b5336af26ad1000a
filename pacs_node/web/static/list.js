// The keyboard: up and down choose a study, slash searches, right shows the next page. Enter opens: links do that.
"use strict";

const table = document.getElementById("studies");
const fresh = document.getElementById("fresh");

function choose(step) {
  const links = [...document.querySelectorAll("a.open")];
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
    "/": () => document.querySelector("input[type=search]")?.focus(),
    r: () => fresh && !fresh.hidden && location.reload(),
    b: () => document.querySelector("a[href='/blind']")?.click(),
  };
  if (!(event.key in actions)) return;
  event.preventDefault();
  actions[event.key]();
});

document.querySelector("tbody")?.addEventListener("dblclick", (event) => {
  event.target.closest("tr").querySelector("a.open").click();
});

// Rows change in place and stay where they are; for new studies there is a button
function update(page) {
  const rows = new Map([...table.querySelectorAll("tr[data-study]")].map((row) => [row.dataset.study, row]));
  const anchor = table.querySelector("tr[data-study]:hover") ?? document.activeElement.closest("tr[data-study]") ?? [...rows.values()].find((row) => row.getBoundingClientRect().top >= 0);
  const before = anchor?.getBoundingClientRect().top;
  let added = 0;
  for (const now of page.querySelectorAll("tr[data-study]")) {
    const row = rows.get(now.dataset.study);
    if (!row) added += 1;
    else for (const [at, cell] of [...now.children].entries()) {
      const same = row.children[at].className.replace(/ ?shown$/, "") === cell.className;
      if (same && row.children[at].innerHTML === cell.innerHTML) continue;
      if (!row.children[at].contains(document.activeElement)) row.children[at].replaceWith(cell.cloneNode(true));
    }
  }
  showColumns();
  if (anchor) scrollBy(0, anchor.getBoundingClientRect().top - before);
  if (!added || new URLSearchParams(location.search).has("after")) return;
  fresh.textContent = `${added} new ${added === 1 ? "study" : "studies"}: show (R)`;
  fresh.hidden = false;
}

const boxes = [...document.querySelectorAll("input[data-column]")];

function chosen() {
  const known = JSON.parse(localStorage.getItem("columns") ?? "{}");
  return (box) => known[box.dataset.column] ?? !document.querySelector(`th[data-column="${box.dataset.column}"]`)?.classList.contains("off");
}

function showColumns() {
  for (const box of boxes) {
    for (const cell of table?.querySelectorAll(`[data-column="${box.dataset.column}"]`) ?? []) {
      cell.hidden = !box.checked;
      cell.classList.toggle("shown", box.checked);
    }
  }
}

if (boxes.length) {
  const isChosen = chosen();
  for (const box of boxes) {
    box.checked = isChosen(box);
    box.addEventListener("change", () => {
      localStorage.setItem("columns", JSON.stringify(Object.fromEntries(boxes.map((one) => [one.dataset.column, one.checked]))));
      showColumns();
    });
  }
  showColumns();
}
fresh?.addEventListener("click", () => location.reload());
if (table) follow(table.dataset.mark, update);
