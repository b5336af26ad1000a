// Follows what changes on the node. A tab that nobody looks at asks for nothing.
"use strict";

const PAUSE = 2000; // ms between two updates

function follow(mark, update) {
  let source = null, since = mark, isDue = false, last = 0;

  function open() {
    if (source || document.hidden) return;
    source = new EventSource(`/events?since=${encodeURIComponent(since)}`);
    source.addEventListener("change", (event) => {
      since = event.lastEventId;
      if (isDue) return;
      isDue = true;
      setTimeout(run, Math.max(0, last + PAUSE - Date.now()));
    });
  }

  async function run() {
    isDue = false;
    last = Date.now();
    try {
      const answer = await fetch(location.href, { headers: { "X-Live": "1" } });
      if (answer.ok && !answer.redirected) update(new DOMParser().parseFromString(await answer.text(), "text/html"));
    } catch {
      // The node is away; the next event comes when it is back
    }
  }

  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) return open();
    source?.close();
    source = null;
  });
  open();
}
