"""People before a real browser: Chromium, Traefik, Prefect with both UIs, an OpenID Provider; sign-in to sign-out."""
