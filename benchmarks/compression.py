"""Compares the stored size of samples with ``gzip -6``: each table of the sample database and more.

    scripts/setup --postgresql 18 && .venv/bin/python benchmarks/compression.py

Prints, for each sample, how far gzip -6 shrinks it, and the size at pgstash's levels as a multiple
of gzip -6's, with the speed of one core in MB/s of plain text.
"""

from __future__ import annotations

import gzip
import random
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from pgstash.pipeline.compression import compress
from support import databases
from support.postgres import Cluster, Database

SAMPLE_BYTES = 24_000_000
CHUNK_BYTES = 120 * 1024
LEVELS = (1, 6, 7, 9)
TABLES = ("customers", "orders", "events", "documents", "blobs", "measurements")
ROUND_TRIPPING = ("mixed", "structure", "nasty_text")


def generated() -> Iterator[tuple[str, bytes]]:
    """Yield samples of other kinds of rows, the same ones each time."""
    chance = random.Random(1)  # noqa: S311 - samples, not secrets
    rows = SAMPLE_BYTES // 120

    def table(name: str, row: object) -> tuple[str, bytes]:
        if not callable(row):
            raise TypeError(name)
        return name, "".join(f"{row(number)}\n" for number in range(rows)).encode()

    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(4000)]
    yield table("prose", lambda _: " ".join(chance.choices(words, k=20)))
    yield table(
        "web log",
        lambda n: (
            f"10.{n % 7}.{chance.randint(0, 255)}.{chance.randint(0, 255)} - - [12/Mar/2026:10:"
            f"{n // 60 % 60:02}:{n % 60:02} +0000] GET /item/{chance.randint(1, 5000)} HTTP/1.1 "
            f"{chance.choice((200, 200, 404))} {chance.randint(100, 90000)} Mozilla/5.0 (X11)"
        ),
    )
    yield table(
        "JSON orders",
        lambda n: (
            f'{{"order": {n}, "customer": "c{chance.randint(1, 50000)}", "total": '
            f'{chance.randint(100, 99999) / 100}, "items": [{{"sku": "A{chance.randint(1, 999)}", '
            f'"qty": {chance.randint(1, 9)}}}], "paid": {chance.choice(("true", "false"))}}}'
        ),
    )
    yield table("sequential numbers", lambda n: f"{n}\t{n * 7}\t{n % 13}\t\\N\tt")
    yield table("floats", lambda n: f"{n}\t{chance.gauss(20, 5)}\t{chance.random()}")
    yield table("uuids", lambda n: f"{n}\t{chance.getrandbits(128):032x}")
    yield table("one row again and again", lambda _: "the same\t\\N\tt\tf\t2026-01-01")


def samples(cluster: Cluster) -> Iterator[tuple[str, bytes]]:
    """Yield a name and plain dump text for each sample."""
    big = cluster.create_database("big")
    big.run_sql(databases.big(0.2))
    for name in TABLES:
        yield name, big.plain_dump("--table", name)[:SAMPLE_BYTES]
    for name in ROUND_TRIPPING:
        database: Database = cluster.load_sample(name)
        yield f"database {name}", database.plain_dump()[:SAMPLE_BYTES]
    yield from generated()


def measure(text: bytes, level: int) -> tuple[int, float]:
    """Return the compressed size and the speed in MB/s."""
    chunks = (text[at : at + CHUNK_BYTES] for at in range(0, len(text), CHUNK_BYTES))
    started = time.process_time()
    size = sum(map(len, compress(chunks, level=level, record=lambda _: None)))
    return size, len(text) / 1e6 / (time.process_time() - started)


def main() -> None:
    """Measure, and print a table."""
    ratios: dict[int, list[float]] = {level: [] for level in LEVELS}
    titles = "".join(f"{f'level {level}':>14}" for level in LEVELS)
    print(f"{'':26}{'gzip -6':>8}{titles}")
    with Cluster(18) as cluster:
        for name, text in samples(cluster):
            yardstick = len(gzip.compress(text, 6, mtime=0))
            line = f"{name:26}{len(text) / yardstick:7.1f}:1"[:34].rjust(34)
            for level in LEVELS:
                size, speed = measure(text, level)
                ratios[level].append(size / yardstick)
                line += f"{size / yardstick:8.2f} @{speed:4.0f}"
            print(line)
    for title, summarise in (("median", statistics.median), ("largest", max)):
        values = "".join(f"{summarise(ratios[level]):8.2f}      " for level in LEVELS)
        print(f"{title:34}{values}")


if __name__ == "__main__":
    main()
