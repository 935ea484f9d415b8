"""Environment + TOML + secrets → frozen Settings, or one ConfigError with every problem.

Strongest first: command line, environment (``FORWARD_AUTH_…``, nested with ``__``), ``…_FILE`` variables,
a secrets directory, the secrets file, secrets managers, ``forward-auth.toml``, defaults.
"""

from service.settings.load import ConfigError, Loaded, is_configured, load
from service.settings.schema import IssuerSettings, Settings, UsersSettings

__all__ = ["ConfigError", "IssuerSettings", "Loaded", "Settings", "UsersSettings", "is_configured", "load"]
