"""Make the first users of a compose project, once; `docker compose run --rm users add NAME` changes them later.

Without arguments: where there is no key for sessions, make one; where there is no users file, make one with a random
password for each of FIRST_USERS and print those passwords, this one time. With arguments: be `prefect-forward-auth
users …`.
"""  # noqa: INP001 - a script, in no package

import os
import secrets
import subprocess
import sys
from pathlib import Path

COMMAND = "prefect-forward-auth"
FIRST_USERS = {"admin": "for people who look after Prefect", "worker": "for workers, flow runs and CI"}


def main() -> None:
    """Run once and exit: 0 the users are there, anything else they are not."""
    if sys.argv[1:]:
        os.execvp(COMMAND, [COMMAND, "users", *sys.argv[1:]])  # noqa: S606 - this image's own command
    make_session_key(Path(os.environ["FORWARD_AUTH_SESSION__KEYS_FILE"]))
    users = Path(os.environ["FORWARD_AUTH_USERS__FILE"])
    if users.exists():
        say(f"{users} is there already: nothing to do.")
        return
    # Whole or not at all: an interrupted run leaves no users file, and the next one begins anew.
    unfinished = users.with_name(f".{users.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    passwords = {name: secrets.token_urlsafe(24) for name in FIRST_USERS}
    for name, password in passwords.items():
        subprocess.run(  # noqa: S603
            [COMMAND, "users", "add", name, "--file", unfinished],
            input=password,
            text=True,
            stdout=subprocess.DEVNULL,
            check=True,
        )
    say("The first users, with passwords that are printed here and kept nowhere else:\n")
    for name, purpose in FIRST_USERS.items():
        say(f"  {name:<8} {passwords[name]}   {purpose}")
    say("\nIn a browser:  sign in as one of them at the people's host, http://prefect.localhost unless you changed it")
    say("For a worker:  PREFECT_API_AUTH_STRING=worker:<its password>  (README.md: the form for each version)")
    say("Write them down, then remove this log:  docker compose rm --force users")
    unfinished.rename(users)


def make_session_key(path: Path) -> None:
    """Make the key that seals people's sessions, so that they outlast a restart; a new line in front rotates it."""
    if path.exists():
        return
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_urlsafe(32) + "\n")
    unfinished.rename(path)


def say(line: str) -> None:
    """Print a line at once, so that no password comes into force that nobody has seen."""
    print(line, flush=True)  # noqa: T201 - the log of this container is how it speaks


if __name__ == "__main__":
    main()
