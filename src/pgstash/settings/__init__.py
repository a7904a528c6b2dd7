"""Every setting, declared once: variable, type, bounds, default, help, and whether it is secret.

``.env.example`` and ``docs/reference/settings.md`` are generated from these declarations. A setting
is an environment variable, named like the field in upper case. A ``.env`` file in the working
directory provides variables that the environment does not have. A secret may come from a file
instead, named by the variable with ``_FILE`` appended. An empty value means unset.
"""

from pgstash.settings.declaration import Variable
from pgstash.settings.model import (
    ODD_VALUE_REMEDY,
    Need,
    Settings,
    is_secret,
    variable_of,
)
from pgstash.settings.sources import (
    Request,
    environment,
    environment_of_jobs,
    load,
    log_format,
    name_config,
    secret_variables,
)
from pgstash.settings.spelling import misspelt

__all__ = [
    "ODD_VALUE_REMEDY",
    "Need",
    "Request",
    "Settings",
    "Variable",
    "environment",
    "environment_of_jobs",
    "is_secret",
    "load",
    "log_format",
    "misspelt",
    "name_config",
    "secret_variables",
    "variable_of",
]
