"""The settings that a command is to use, with the files that they name."""

import argparse

from service.adapters.users_file import UsersFileError, read_users
from service.issuing.configured import problem_of_database
from service.settings import ConfigError, Loaded, Settings, load


def load_checked(options: argparse.Namespace) -> Loaded:
    """Load the settings and check the files that they name; raise ConfigError with the problems of both."""
    given = {name: getattr(options, name, None) for name in ("host", "port", "uds", "workers")}
    command_line = {name: value for name, value in given.items() if value}
    try:
        loaded = load(command_line=command_line, config_file=options.config, secrets_file=options.secrets)
    except ConfigError as error:
        raise ConfigError(error.problems + _problems_of_files(error.draft)) from None
    problems = _problems_of_files(loaded.settings)
    if problems:
        raise ConfigError(problems)
    return loaded


def _problems_of_files(settings: Settings | None) -> list[str]:
    """Return what is wrong with the files that settings, or a draft of them, name."""
    found = []
    users = settings.users if settings is not None and settings.users and str(settings.users.file) else None
    if users is not None:
        try:
            read_users(users.file, users.max_cost, users.max_size)
        except UsersFileError as problem:
            found.append(f"users.file: {users.file}: {problem}")
    if settings is not None and (told := problem_of_database(settings)):
        found.append(told)
    return found
