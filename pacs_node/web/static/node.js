// The page about the node follows it, but never while somebody is at one of its buttons.
"use strict";

const main = document.querySelector("main");

follow(main.querySelector("[data-mark]").dataset.mark, (fresh) => {
  if (!main.contains(document.activeElement)) main.replaceChildren(...fresh.querySelector("main").children);
});
