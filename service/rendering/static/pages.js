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

const clock = new Intl.DateTimeFormat("en-GB", {
  day: "numeric", month: "long", year: "numeric", hour: "2-digit", minute: "2-digit", timeZoneName: "short",
});
for (const time of document.querySelectorAll("time")) {
  time.title = time.textContent;
  time.textContent = clock.format(new Date(time.dateTime));
}
