"""Write the documents that are made from the code: `python -m docs.generate`, or `--check` to hold them to it."""

import sys
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from service.settings.schema import PREFIX, Settings

PAGE = Path(__file__).parent / "configuration.md"
HEAD = """# Configuration

<!-- made by docs/generate.py from service/settings/schema.py: `make docs` -->

Sources, strongest first:

1. the command line (`--host`, `--port`, `--uds`, `--workers`)
2. the environment: `FORWARD_AUTH_` and the key, nested with `__`; an empty variable is not given
3. files: `…_FILE` beside any variable names a file that holds the value; `FORWARD_AUTH_SECRETS_DIR` names a folder
   of files that are named like the variables, in any case
4. `forward-auth.toml` in the working directory, or the file that `--config` or `FORWARD_AUTH_CONFIG` names
5. the defaults below

A key that does not exist is refused, wherever it stands. `prefect-forward-auth config check` lists every problem at
once; `config show` prints the values in force with the source of each. Lists are
comma-separated in a variable.

Several issuers are `[[issuers]]` tables with the keys of `[issuer]`, or JSON in `FORWARD_AUTH_ISSUERS`. Both may
stand side by side.

```toml
[[issuers]]
url = "https://idp.example.com/realms/data"
audiences = ["prefect"]
role = "worker"

[[issuers]]
url = "https://token.actions.githubusercontent.com"
audiences = ["prefect"]
required_claims = { repository_owner = ["acme"] }
role = "deployer"

[users]
file = "/run/secrets/users.htpasswd"
role = "worker"
```
"""


def rows(section: type[BaseModel], at: str = "") -> list[str]:
    """Return one table row a key, sections in their order."""
    found = []
    for name, field in section.model_fields.items():
        below = next((one for one in (field.annotation, *get_args(field.annotation)) if _is_section(one)), None)
        if name == "issuers":
            continue
        if below is not None:
            found += rows(below, f"{at}{name}.")
            continue
        variable = f"{PREFIX}{f'{at}{name}'.upper().replace('.', '__')}"
        description = (field.description or "").replace("|", "\\|")
        found.append(f"| `{at}{name}`<br>`{variable}` | {_default(field, name)} | {description} |")
    return found


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _default(field: Any, name: str) -> str:
    if field.default is PydanticUndefined:
        return "one less than the processors" if field.default_factory else "**needed**"
    value = field.default
    if name == "algorithms":
        return "all ten"
    if isinstance(value, frozenset | tuple):
        return ", ".join(f"`{one}`" if str(one) else "without" for one in sorted(value, key=str)) or "none"
    if value is None or value in ("", {}):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def page() -> str:
    """Return the whole page."""
    table = ["| key and variable | default | meaning |", "| --- | --- | --- |", *rows(Settings)]
    return HEAD + "\n" + "\n".join(table) + "\n"


def main() -> None:
    """Write the page, or with --check exit 1 if it is not what the code says."""
    if "--check" in sys.argv[1:]:
        if PAGE.read_text("utf-8") != page():
            sys.exit(f"{PAGE.name} is not what the settings say: run `make docs`")
        print(f"{PAGE.name} is up to date")
        return
    PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
