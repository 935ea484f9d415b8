"""``python -m service`` is ``prefect-forward-auth``."""

from service.cli.main import main

if __name__ == "__main__":
    main()
