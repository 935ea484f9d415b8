"""Another uvicorn than the one that the service was tested with, so that it answers all calls by ASGI."""

import importlib.util
import shutil
from pathlib import Path


def install(folder: Path) -> Path:
    """Copy the installed uvicorn into a folder for PYTHONPATH, with one line more, and return the folder."""
    found = importlib.util.find_spec("uvicorn")
    assert found is not None
    assert found.origin is not None
    package = folder / "uvicorn"
    shutil.copytree(Path(found.origin).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    with (package / "protocols" / "http" / "httptools_impl.py").open("a") as source:
        source.write("# of another version\n")
    return folder
