// The form in which people sign in, with a key or at the issuer.

import { hasIssuer, signIn } from "./api.js";
import { h } from "./dom.js";
import { refusal } from "./parts.js";

// `refused` is the last refusal. `isIn` is called after a sign-in, `isRefused` with what refused it, and `leaves` before
// the browser goes to the issuer.
export function signInForm(refused, { isIn, isRefused, leaves }) {
  return h(
    "form",
    {
      class: "card narrow",
      "aria-label": "Sign in",
      onsubmit: async (event) => {
        event.preventDefault();
        const box = event.target.elements.key;
        try {
          await signIn(box.value.trim());
          box.value = "";
          isIn();
        } catch (error) {
          isRefused(error);
        }
      },
    },
    h("h2", {}, "Sign in"),
    h("p", {}, "This service asks for a key (pqs keys create), or a token of its OpenID Connect issuer. A key begins a session of eight hours."),
    h(
      "label",
      { class: "field" },
      h("span", {}, "Key or token"),
      h("input", { name: "key", type: "password", autocomplete: "current-password", required: true }),
    ),
    refusal(refused),
    h(
      "p",
      { class: "tools" },
      h("button", { type: "submit" }, "Sign in"),
      hasIssuer ? h("a", { href: "oidc", target: "_self", onclick: leaves }, "Sign in with OpenID Connect") : null,
    ),
  );
}
