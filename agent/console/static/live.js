// Live parts. A page asks every few seconds, only while somebody looks at it, and waits longer when
// the agent does not answer.
import { localTime } from "./console.js";

function poll(seconds, step) {
  let timer, wait = seconds, running = false;
  const run = async () => {
    running = true;
    try {
      wait = (await step()) === false ? 0 : seconds;
    } catch {
      wait = Math.min(60, wait * 2);
    }
    running = false;
    if (wait && !document.hidden) timer = setTimeout(run, wait * 1000);
  };
  const wake = () => {
    clearTimeout(timer);
    if (!document.hidden && wait && !running) run();
  };
  document.addEventListener("visibilitychange", wake);
  timer = setTimeout(run, seconds * 1000);
  return () => { clearTimeout(timer); document.removeEventListener("visibilitychange", wake); wait = 0; };
}

async function ask(address) {
  const answer = await fetch(address, { headers: { Accept: "application/json" } });
  if (answer.status === 401) { location.reload(); return null; }
  if (!answer.ok) throw new Error(String(answer.status));
  return answer.json();
}

// The figures of the overview.
for (const mark of document.querySelectorAll("[data-live]")) {
  mark.classList.add("on");
  poll(5, async () => {
    const texts = await ask(mark.dataset.live);
    for (const [name, text] of Object.entries(texts ?? {})) {
      for (const place of document.querySelectorAll(`[data-live-text="${name}"]`)) {
        if (place.textContent !== text) place.textContent = text;
      }
    }
  });
}

// The progress of a replay. When it has ended the page is loaded once more.
for (const page of document.querySelectorAll("[data-replay]")) {
  const place = (name) => page.querySelector(`[data-replay-${name}]`);
  const before = place("state").firstElementChild.classList[1];
  poll(1, async () => {
    const now = await ask(page.dataset.replay);
    if (!now) return false;
    place("done").textContent = now.done;
    place("of").textContent = now.of;
    place("unsent").textContent = now.unsent;
    place("bar").value = now.percent;
    const state = place("state").firstElementChild;
    state.className = `state ${now.state}`;
    state.textContent = now.word;
    if (now.ended || (now.state !== before && before !== "pending")) { location.reload(); return false; }
    return true;
  });
}

// The live log. New rows come on top, but not while somebody points at a row or has focus in one.
const mostRows = 200;
for (const button of document.querySelectorAll("[data-log]")) {
  const rows = document.querySelector("[data-rows]");
  const template = document.getElementById("live-row");
  let stop = null, position = -1, leftOut = 0;
  const waiting = [];
  // The hosts of endpoints, as the rows of the page have them.
  const hosts = new Map();
  for (const row of rows.rows) {
    if (row.dataset.host) hosts.set(row.dataset.endpoint, row.dataset.host);
  }

  const makeRow = (d) => {
    const row = template.content.cloneNode(true).firstElementChild;
    const cells = row.cells;
    const state = cells[0].firstElementChild;
    state.className = `state ${d.status}`;
    state.textContent = d.word;
    const link = cells[1].querySelector("a");
    link.href = d.path;
    link.firstElementChild.textContent = d.type;
    cells[1].lastElementChild.textContent = d.event;
    const names = cells[2].querySelectorAll("bdi");
    const host = hosts.get(d.endpoint_id);
    names[0].textContent = host ?? d.endpoint;
    names[0].className = host ? "" : "id";
    if (names[1]) names[1].textContent = d.venue;
    cells[3].textContent = d.result;
    cells[4].textContent = d.attempts;
    cells[5].textContent = d.latency;
    if (d.created) cells[6].textContent = localTime(new Date(d.created), false);
    row.dataset.key = d.path;
    return row;
  };
  const show = () => {
    if (!waiting.length || rows.matches(":hover") || rows.contains(document.activeElement)) return;
    rows.closest(".table").hidden = false;
    document.querySelector("[data-blank]")?.setAttribute("hidden", "");
    for (const d of waiting.splice(0)) {
      const row = makeRow(d);
      for (const old of rows.rows) {
        if (old.dataset.key === row.dataset.key) { old.remove(); break; }
      }
      rows.prepend(row);
    }
    while (rows.rows.length > mostRows) rows.lastElementChild.remove();
  };
  const label = () => {
    button.setAttribute("aria-pressed", String(Boolean(stop)));
    let text = stop ? button.dataset.word : button.dataset.idle;
    if (stop && leftOut) text += ` (${button.dataset.left.replace("%s", leftOut)})`;
    if (button.textContent !== text) button.textContent = text;
  };
  const step = async () => {
    const address = new URL(button.dataset.log, location.href);
    address.searchParams.set("position", position);
    const page = await ask(address);
    if (!page) return false;
    position = page.position;
    leftOut += page.left_out;
    waiting.push(...page.rows);
    waiting.splice(0, Math.max(0, waiting.length - mostRows));
    show();
    label();
    return true;
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    if (stop) { stop(); stop = null; } else { position = -1; leftOut = 0; step().catch(() => {}); stop = poll(2, step); }
    label();
  });
  rows.addEventListener("mouseleave", show);
  label();
}
