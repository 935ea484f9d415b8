// Makes pages more convenient; each works without it.
"use strict";

// What stands behind # in an address never reaches a server: it is handed on, and back after sign-in.
const fragment = location.hash.slice(1);
if (fragment) {
  for (const field of document.querySelectorAll("input[name=fragment]")) {
    field.value = fragment;
    field.form.action += location.hash; // it stays in the address if the form is shown again
  }
  for (const link of document.querySelectorAll("a[data-onward]")) {
    const target = new URL(link.href);
    if (target.origin !== location.origin) continue;
    target.searchParams.set("fragment", fragment);
    link.href = target;
  }
}

for (const peek of document.querySelectorAll(".peek")) {
  const field = peek.parentElement.querySelector("input");
  const show = (shown) => {
    field.type = shown ? "text" : "password";
    peek.setAttribute("aria-pressed", shown);
  };
  peek.hidden = false;
  peek.addEventListener("click", () => show(field.type === "password"));
  field.form.addEventListener("submit", () => show(false)); // so that it is saved, and shown, as a password
}

for (const copy of document.querySelectorAll(".copy")) {
  const field = document.getElementById(copy.dataset.of);
  field.addEventListener("focus", () => field.select());
  copy.hidden = !navigator.clipboard; // there is none over plain HTTP: the text can be selected
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(field.value);
    copy.textContent = "Copied";
  });
}

// A second click would replace the answer to the first one, which shows what no other answer does.
for (const form of document.querySelectorAll("form[data-once]")) {
  form.addEventListener("submit", () => { form.querySelector("button").disabled = true; });
  addEventListener("pageshow", () => { form.querySelector("button").disabled = false; });
}

const clock = new Intl.DateTimeFormat("en-GB", {
  day: "numeric", month: "long", year: "numeric", hour: "2-digit", minute: "2-digit", timeZoneName: "short",
});
for (const time of document.querySelectorAll("time")) {
  time.title = time.textContent;
  time.textContent = clock.format(new Date(time.dateTime));
}
