"""Passwords, from a prompt or from the first line of standard input; never from an argument, which others can see."""

import getpass
import sys

from service.adapters.users_file import UsersFileError, check_new_password


def read_password(*, twice: bool = False) -> str:
    """Return a password, which a person at a prompt types ``twice`` alike; UsersFileError where there is none."""
    try:
        if not sys.stdin.isatty():
            password = sys.stdin.readline().rstrip("\r\n")
        else:
            password = getpass.getpass("Password: ")
            if twice and getpass.getpass("Again: ") != password:
                raise UsersFileError("the two passwords differ")
        password.encode()  # undecodable bytes may have come as surrogates
    except UnicodeError:
        raise UsersFileError("the password is not UTF-8") from None
    except EOFError:
        print(file=sys.stderr)  # where the cursor stands behind a prompt
        raise UsersFileError("no password was given") from None
    return password


def read_new_password() -> str:
    """Return a password that may be chosen, or raise UsersFileError."""
    password = read_password(twice=True)
    check_new_password(password)
    return password
