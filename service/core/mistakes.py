"""What whoever runs a command did wrong."""


class MistakeError(Exception):
    """A command that cannot be done as asked. The message says why, and what to do; it never quotes a secret."""

    def report(self) -> str:
        """Return what is printed, one line or more."""
        return f"prefect-forward-auth: {self}"
