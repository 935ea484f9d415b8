"""Let Prefect's server keep its data in PostgreSQL: make the password and write the server's profile, once.

The profile lies in the server's own volume, so the choice holds with and without `--profile postgres`: a server whose
database is down waits for it, and never begins another one in SQLite. Where one was begun already, this refuses.
"""

import os
import secrets
import sys
from pathlib import Path

PROFILE = Path("/var/lib/prefect/profiles.toml")
SQLITE = Path("/var/lib/prefect/prefect.db")
PASSWORD = Path("/var/lib/postgres-password/password")

TEXT = """\
active = "postgres"

[profiles.postgres]
PREFECT_SERVER_DATABASE_CONNECTION_URL = "postgresql+asyncpg://prefect:{password}@postgres:5432/prefect"
"""


def main() -> None:
    """Run once and exit: 0 the server uses PostgreSQL, anything else it does not."""
    if PROFILE.exists():
        return
    if SQLITE.exists():
        sys.exit(
            f"Prefect keeps its data in SQLite here, and it would not be moved. To begin anew in PostgreSQL:\n"
            f"  docker compose stop prefect && docker compose run --rm --no-deps prefect mv {SQLITE} {SQLITE}.old"
        )
    if not PASSWORD.exists():
        # PostgreSQL's own user reads it, whatever its number in the image; no other container has this volume.
        write(PASSWORD, secrets.token_urlsafe(32), 0o444)
    write(PROFILE, TEXT.format(password=PASSWORD.read_text()), 0o600)


def write(path: Path, text: str, mode: int) -> None:
    """Write a file whole or not at all."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(text)
    unfinished.rename(path)


if __name__ == "__main__":
    main()
