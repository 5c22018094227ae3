// What every page gets. Other modules come only with the parts that need them. No script makes HTML:
// texts are set as texts, and the page's policy forbids the rest.

const parts = [
  ["form[method=post], form[data-auto]", "./forms.js"],
  ["[data-live], [data-log], [data-replay]", "./live.js"],
  ["[data-verify]", "./verify.js"],
];
for (const [selector, module] of parts) {
  if (document.querySelector(selector)) import(module);
}

// Times are written in UTC, and shown in the visitor's own zone in the same form.
const language = document.documentElement.lang;
const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
const months = new Intl.DateTimeFormat(language, { month: "short" });

const two = (n) => String(n).padStart(2, "0");

export function localTime(date, withYear) {
  const month = months.format(date).replace(".", "");
  const day = `${date.getDate()} ${month}${withYear ? " " + date.getFullYear() : ""}`;
  return `${day}, ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

function showTimes() {
  for (const time of document.querySelectorAll("time[data-at], time[data-short]")) {
    const date = new Date(time.dateTime);
    time.title = time.dateTime.replace("T", " ").replace("Z", " UTC");
    time.textContent = localTime(date, time.hasAttribute("data-at"));
  }
}
showTimes();
for (const note of document.querySelectorAll("[data-zone]")) {
  note.textContent = note.textContent.replace("UTC", zone);
}

// A button that copies the text of an element.
for (const button of document.querySelectorAll("button[data-copy]")) {
  if (!navigator.clipboard) continue;
  const label = button.textContent;
  button.hidden = false;
  button.addEventListener("click", async () => {
    const from = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(from.value ?? from.textContent);
      button.textContent = button.dataset.copied;
      setTimeout(() => { button.textContent = label; }, 2000);
    } catch {
      if (from.select) from.select();
    }
  });
}
for (const field of document.querySelectorAll("input[readonly]")) {
  field.addEventListener("focus", () => field.select());
}

// A page in the app's frame whose session has ended says so to the app, which signs a new token and
// comes back to the page.
const expired = document.querySelector("[data-expired]");
if (expired && window.parent !== window) {
  // Where the browser says who the parent is, no other origin is tried.
  const parent = location.ancestorOrigins?.[0];
  for (const origin of expired.dataset.expired.split(" ").filter(Boolean)) {
    if (parent && parent !== origin) continue;
    window.parent.postMessage({ type: "webhooks:expired", next: expired.dataset.next || undefined }, origin);
  }
}
