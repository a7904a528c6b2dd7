"""The entry point of the ``pgstash`` command, and of ``python -m pgstash``."""

from __future__ import annotations

import gc
import os


def main() -> None:
    """Run the command line.

    Imported modules stay until the process ends. Searching them for garbage, repeatedly while they
    are loaded and once more at the end, takes a fifth of the start time
    (https://docs.python.org/3/library/gc.html#gc.freeze). The runner of the commands enables the
    search again, after it has imported the rest.
    """
    if os.getpid() == 1:
        from pgstash.processes import first  # noqa: PLC0415 - only in a container

        first.continue_as_child()
    gc.disable()
    from pgstash import cli  # noqa: PLC0415 - after gc.disable()

    cli.main()


if __name__ == "__main__":
    main()
