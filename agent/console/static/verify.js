// Checks a signature in the browser. Nothing that is typed here is sent.
for (const part of document.querySelectorAll("[data-verify]")) {
  const form = part.querySelector("[data-body]");
  const [secret, signature] = form.querySelectorAll("input");
  const answer = form.querySelector("[role=status]");
  form.querySelector("button").addEventListener("click", async () => {
    if (!crypto.subtle) { answer.textContent = form.dataset.none; return; }
    const bytes = (text) => new TextEncoder().encode(text);
    const key = await crypto.subtle.importKey("raw", bytes(secret.value || " "), { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
    const mac = new Uint8Array(await crypto.subtle.sign("HMAC", key, bytes(form.dataset.body)));
    const hex = Array.from(mac, (b) => b.toString(16).padStart(2, "0")).join("");
    const given = signature.value.trim().toLowerCase().replace(/^sha256=/, "");
    answer.className = given === hex ? "note good" : "note bad";
    answer.textContent = given === hex ? form.dataset.good : form.dataset.bad;
  });
}
