"""Run each client version with each form of credential behind the gate: `make client-matrix`.

It prints what was persisted and what observers saw, for the table in docs/workers.md, and exits with 1 if a flow run
lost anything. `make test` runs a part of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from tests.e2e.campaign import TASKS, Campaign, Case
from tests.support.credential_forms import API_KEY, BASIC, CUSTOM_HEADERS, JWT_AUTH_STRING, URL_USERINFO
from tests.support.openid import AUDIENCE, OpenIDProvider
from tests.support.parts import CLIENT_VERSIONS, OLDER_CLIENTS, ROOT, SERVER_VERSION
from tests.support.prefect import Server
from tests.support.site import PASSWORD, USER, Site, add_user

VERSIONS = sorted(
    {SERVER_VERSION, *OLDER_CLIENTS, *CLIENT_VERSIONS}, key=lambda version: [int(part) for part in version.split(".")]
)
FORMS = {form.name: form for form in (API_KEY, BASIC, JWT_AUTH_STRING, CUSTOM_HEADERS, URL_USERINFO)}
WITHOUT_HEADERS = ("3.2.15",)  # PREFECT_CLIENT_CUSTOM_HEADERS came later
OBSERVERS = ("deployment run --watch", "events stream", "task.serve", "wait_for_flow_run")
COLUMNS = ("version", "form", "flow run", "task runs", "logs", "artifacts", "worker")
OUTPUT = ROOT / "build" / "client-matrix.json"


def main() -> int:
    """Fill in the table, print it, write it; return 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--versions", nargs="*", default=VERSIONS, metavar="VERSION")
    parser.add_argument("--forms", nargs="*", default=list(FORMS), choices=list(FORMS), metavar="FORM")
    parser.add_argument("--without-observers", action="store_true", help="only run the flows")
    options = parser.parse_args()
    observers = () if options.without_observers else OBSERVERS
    columns = (*COLUMNS, *observers)
    cases = [
        Case(version, FORMS[form])
        for version in options.versions
        for form in options.forms
        if FORMS[form] is not CUSTOM_HEADERS or version not in WITHOUT_HEADERS
    ]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        provider = stack.enter_context(OpenIDProvider(folder))
        server = stack.enter_context(Server(folder / "server"))
        users = folder / "users.htpasswd"
        add_user(users, USER, PASSWORD)
        settings = {
            "FORWARD_AUTH_ISSUER__URL": provider.url,
            "FORWARD_AUTH_ISSUER__AUDIENCES": AUDIENCE,
            "FORWARD_AUTH_ISSUER__ROLE": "admin",
            "FORWARD_AUTH_USERS__FILE": str(users),
            "FORWARD_AUTH_USERS__ROLE": "admin",
        }
        site = stack.enter_context(Site(folder / "site", server.url, settings))
        campaign = stack.enter_context(Campaign(folder / "campaign", server, site, provider, observers=bool(observers)))
        for case in cases:
            campaign.enlist(case)
        print("| " + " | ".join(columns) + " |")
        print("|" + " --- |" * len(columns))
        rows, lost = [], 0
        for case in cases:
            outcome = campaign.outcome(case)
            seen = ["yes" if outcome.observers.get(name) else "no" for name in observers]
            counts = [f"{count} of {TASKS}" for count in (outcome.task_runs, outcome.logs)]
            worker = "runs" if outcome.worker_exit is None else f"exits with {outcome.worker_exit}"
            row = [case.version, case.form.name, outcome.state, *counts, str(outcome.artifacts), worker, *seen]
            print("| " + " | ".join(row) + " |", flush=True)
            whole = ("COMPLETED", TASKS, TASKS, 1, None)
            found = outcome.state, outcome.task_runs, outcome.logs, outcome.artifacts, outcome.worker_exit
            lost += found != whole
            rows.append({"version": case.version, "form": case.form.name, **asdict(outcome)})
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
