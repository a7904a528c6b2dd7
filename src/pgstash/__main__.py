"""The entry point of the ``pgstash`` command, and of ``python -m pgstash``."""

from __future__ import annotations

import gc


def main() -> None:
    """Run the command line.

    What is imported stays until the process ends: to look through it for garbage, again and again
    while it grows and once more at the end, takes a fifth of the time that a start takes
    (https://docs.python.org/3/library/gc.html#gc.freeze).
    """
    gc.disable()
    from pgstash import cli  # noqa: PLC0415 - only now, for that

    gc.freeze()
    gc.enable()
    cli.main()


if __name__ == "__main__":
    main()
