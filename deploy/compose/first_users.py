"""Make the users of a compose project, once; `docker compose run --rm users add NAME` changes them later.

Without arguments: where there is no key for sessions, make one; where there is no users file, make one with a random
password for each of FIRST_USERS and print those passwords, this one time. The containers `worker` and `cli` get theirs
as a Prefect profile in a volume of their own; where one is missing, its user gets a new password. With arguments: be
`prefect-forward-auth users …`.
"""

import base64
import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

COMMAND = "prefect-forward-auth"
FIRST_USERS = {
    "admin": "for people who look after Prefect",
    "worker": "for workers and their flow runs; the container `worker` has it",
    "deployer": "for whoever deploys, as CI does; the container `cli` has it",
}
PROFILES = {
    "worker": Path("/var/lib/prefect-worker/profiles.toml"),
    "deployer": Path("/var/lib/prefect-cli/profiles.toml"),
}


def main() -> None:
    """Run once and exit: 0 the users are there, anything else they are not."""
    if sys.argv[1:]:
        os.execvp(COMMAND, [COMMAND, "users", *sys.argv[1:]])  # noqa: S606 - this image's own command
    keys = Path(os.environ["FORWARD_AUTH_SESSION__KEYS_FILE"])
    if not keys.exists():  # they outlast a restart; a new line in front rotates them
        write(keys, secrets.token_urlsafe(32) + "\n")
    users = Path(os.environ["FORWARD_AUTH_USERS__FILE"])
    kept = {name for name in FIRST_USERS if name not in PROFILES or PROFILES[name].exists()} if users.exists() else ()
    passwords = {name: secrets.token_urlsafe(24) for name in FIRST_USERS if name not in kept}
    if not passwords:
        say(f"{users} is there already: nothing to do.")
        return
    if users.exists():
        announce(passwords)
        add(users, passwords)
    else:  # whole or not at all: an interrupted run leaves no users file, and the next one begins anew
        folder = users.with_name(f".{users.name}.unfinished")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(0o700)
        add(folder / users.name, passwords)
        announce(passwords)
        (folder / users.name).rename(users)
        shutil.rmtree(folder)
    for name in passwords.keys() & PROFILES.keys():
        write(PROFILES[name], profile(name, passwords[name]))


def add(file: Path, passwords: dict[str, str]) -> None:
    """Add users, or change their passwords, by the command that lets others do so at the same time."""
    for name, password in passwords.items():
        subprocess.run(  # noqa: S603
            [COMMAND, "users", "add", name, "--file", file],
            input=password,
            text=True,
            stdout=subprocess.DEVNULL,
            check=True,
        )


def announce(passwords: dict[str, str]) -> None:
    """Print the passwords, before they come into force."""
    say("New passwords, printed here and never again:\n")
    for name, password in passwords.items():
        say(f"  {name:<8} {password}   {FIRST_USERS[name]}")
    say("\nIn a browser:  sign in as admin at the people's host, http://prefect.localhost unless you changed it")
    say("For a worker:  PREFECT_API_AUTH_STRING=worker:<its password>  (README.md: the form for each version)")
    say("Write them down, then remove this log:  docker compose rm --force users")


def profile(name: str, password: str) -> str:
    """Return a Prefect profile with the one header that reaches HTTP and every WebSocket (Prefect 3.4.8 and newer)."""
    credential = base64.b64encode(f"{name}:{password}".encode()).decode()
    headers = json.dumps({"Authorization": f"Basic {credential}"})
    return f'active = "gate"\n\n[profiles.gate]\nPREFECT_CLIENT_CUSTOM_HEADERS = {headers!r}\n'


def write(path: Path, text: str) -> None:
    """Write a file for its owner's eyes alone, whole or not at all."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    unfinished.rename(path)


def say(line: str) -> None:
    """Print a line at once, so that no password comes into force that nobody has seen."""
    print(line, flush=True)


if __name__ == "__main__":
    main()
