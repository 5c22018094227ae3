// Shows the webhooks of the venue in the frame. The token goes there by a form, so that it is in no
// address, no history and no log.
const form = document.getElementById("webhooks");
let opened = -Infinity;

async function open(next = "endpoints") {
  if (performance.now() - opened < 10_000) {
    // The session was gone at once: the browser keeps no cookie within this page.
    document.getElementById("webhooks-problem").hidden = false;
    return;
  }
  opened = performance.now();
  const answer = await fetch(form.dataset.sign, { method: "POST" });
  if (!answer.ok) {
    location.reload(); // the user has to sign in to the app again
    return;
  }
  form.elements.token.value = await answer.text();
  form.elements.next.value = next;
  form.submit();
  form.elements.token.value = "";
}

addEventListener("message", (event) => {
  if (event.origin === new URL(form.action).origin && event.data?.type === "webhooks:expired") {
    open(event.data.next); // the page that the user was on
  }
});

open();
