// Forms that say what is wrong before they are sent, count what they would do, filter at once, or are
// sent once.

async function ask(address, options) {
  const answer = await fetch(address, { ...options, headers: { Accept: "application/json" } });
  if (!answer.ok) throw new Error(String(answer.status));
  return answer.json();
}

function setError(form, name, text) {
  const place = form.querySelector(`[data-error="${name}"]`);
  if (!place) return;
  place.replaceChildren();
  const field = form.elements[name];
  if (field instanceof HTMLElement) field.toggleAttribute("aria-invalid", false);
  if (!text) return;
  const line = document.createElement("p");
  line.className = "wrong";
  line.textContent = text.charAt(0).toUpperCase() + text.slice(1) + ".";
  place.append(line);
  if (field instanceof HTMLElement) field.setAttribute("aria-invalid", "true");
}

// released is fulfilled once no button of the pointer is down, and its click is over. A line that
// appeared before would move the button away from under the pointer, so the click would be lost.
let release = () => {};
let released = Promise.resolve();
document.addEventListener("pointerdown", () => {
  release();
  released = new Promise((resolve) => { release = resolve; });
}, true);
for (const end of ["pointerup", "pointercancel"]) document.addEventListener(end, () => setTimeout(release), true);

// The URL and the event types are judged when somebody leaves the field.
for (const form of document.querySelectorAll("form[data-check]")) {
  const hints = form.querySelector("[data-hints]");
  const check = async () => {
    const body = new URLSearchParams(new FormData(form));
    if (!form.elements.others.value.trim()) body.delete("others");
    try {
      const verdict = await ask(form.dataset.check, { method: "POST", body });
      await released;
      setError(form, "url", verdict.url);
      setError(form, "events", verdict.events);
      hints.replaceChildren(...(verdict.hints ?? []).map((hint) => {
        const line = document.createElement("p");
        line.className = "hint";
        const text = hint.meant ? hints.dataset.meant : hints.dataset.text;
        line.textContent = text.replace("%s", hint.given).replace("%s", hint.meant);
        return line;
      }));
    } catch { /* the form says it when it is sent */ }
  };
  form.elements.url.addEventListener("change", check);
  form.elements.others.addEventListener("change", check);

  // All events, or all of a group, make the single ones needless.
  const groups = () => {
    const all = form.querySelector("[data-all]").checked;
    for (const box of form.querySelectorAll(".group input")) {
      const group = box.closest(".group").querySelector("[data-group]");
      box.disabled = all || (box !== group && group.checked);
    }
  };
  form.addEventListener("change", groups);
  groups();
}

// A replay says how much it would send. One count follows another, since the agent refuses two at a
// time.
for (const form of document.querySelectorAll("form[data-count]")) {
  const shown = form.querySelector("[data-counted]");
  const start = form.querySelector("[data-start]");
  form.querySelector("[data-recount]").hidden = true;
  let counts = false, changed = false;
  form.addEventListener("change", async () => {
    shown.textContent = "…";
    start.disabled = true;
    changed = true;
    if (counts) return;
    counts = true;
    let counted;
    while (changed) {
      changed = false;
      counted = await ask(`${form.dataset.count}?${new URLSearchParams(new FormData(form))}`).catch(() => null);
      await released;
    }
    counts = false;
    for (const place of form.querySelectorAll("[data-error]")) setError(form, place.dataset.error, counted?.errors?.[place.dataset.error]);
    shown.textContent = counted?.text ?? "?";
    start.disabled = counted?.count === 0;
  });
}

// A form that changes something is sent once. The buttons are good again when the browser shows the
// page that it has kept.
const used = [];
document.addEventListener("submit", (event) => {
  const form = event.target;
  if ((event.submitter?.formMethod || form.method) !== "post") return;
  if (form.dataset.sent) { event.preventDefault(); return; }
  form.dataset.sent = "yes";
  setTimeout(() => { // the name of a button that is disabled would not be sent
    for (const button of form.querySelectorAll("button:enabled")) {
      button.disabled = true;
      used.push(button);
    }
  });
});
addEventListener("pageshow", () => {
  for (const button of used.splice(0)) button.disabled = false;
  for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
});

// A filter acts when it is changed.
for (const form of document.querySelectorAll("form[data-auto]")) {
  const send = () => {
    for (const field of form.elements) {
      if (field.name && !field.value) field.disabled = true; // keeps the address short
    }
    form.submit();
    for (const field of form.elements) field.disabled = false;
  };
  form.addEventListener("change", (event) => {
    if (event.target.type !== "text" && event.target.type !== "datetime-local") send();
  });
  form.addEventListener("submit", (event) => { event.preventDefault(); send(); });
}
