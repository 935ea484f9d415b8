"""``prefect-forward-auth``, and ``python -m service``."""

import sys


def main() -> None:
    """Run one command and exit; a worker's machine does not load the service for those of its own."""
    if sys.argv[1:2] in (["run"], ["agent"]):
        from service.agent.command import main as run_agent  # noqa: PLC0415 - it starts in a fraction of the time

        sys.exit(run_agent(sys.argv[1:]))
    if sys.argv[1:2] == ["git-credential"]:
        from service.agent.git_credential import main as answer_git  # noqa: PLC0415 - likewise

        sys.exit(answer_git(sys.argv[1:]))
    if sys.argv[1:2] == ["doctor"] and "--server" not in sys.argv:
        from service.doctor.command import main as run_doctor  # noqa: PLC0415 - likewise

        sys.exit(run_doctor(sys.argv[2:]))
    from service.cli.main import main as run_command  # noqa: PLC0415 - likewise

    run_command()


if __name__ == "__main__":
    main()
