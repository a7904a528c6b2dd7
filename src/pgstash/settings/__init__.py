"""Every setting, declared once: variable, type, bounds, default, help, and whether it is secret.

``.env.example`` and ``docs/reference/settings.md`` are written from this table. A setting is
an environment variable of the field's name in upper case; a ``.env`` file in the working
directory fills in what the environment does not have. A secret may come from a file instead,
named by the variable with ``_FILE`` appended. An empty value means unset.
"""

from pgstash.settings.loading import environment, load, misspelt, secret_variables
from pgstash.settings.table import Need, Settings, Variable, is_secret, variable_of

__all__ = [
    "Need",
    "Settings",
    "Variable",
    "environment",
    "is_secret",
    "load",
    "misspelt",
    "secret_variables",
    "variable_of",
]
