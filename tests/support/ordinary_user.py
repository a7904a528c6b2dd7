"""Runs ``pgstash`` as the user nobody, if it is started by root: ``python -m`` this, arguments.

Root's Python may lie where nobody else can read, so all is imported before the user changes.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import pwd
from datetime import datetime

import pgstash
from pgstash import cli


def main() -> None:
    for module in pkgutil.walk_packages(pgstash.__path__, "pgstash."):
        importlib.import_module(module.name)
    datetime.strptime("2026Z", "%Y%z")  # imports what it needs when it is used
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.setgroups([])
        os.setgid(nobody.pw_gid)
        os.setuid(nobody.pw_uid)
    cli.main()


if __name__ == "__main__":
    main()
