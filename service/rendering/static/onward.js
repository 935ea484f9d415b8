// Leads on at once. What stands behind # in an address never reaches a server, so it is handed on as a parameter.
"use strict";
{
  const target = new URL(document.currentScript.dataset.href, location.href);
  if (target.origin === location.origin && location.hash.length > 1) {
    target.searchParams.set("fragment", location.hash.slice(1));
  }
  location.replace(target);
}
