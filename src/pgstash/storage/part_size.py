"""Chooses the part sizes of a multipart upload: pure arithmetic.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from urllib.parse import urlsplit

MIB = 1024 * 1024
DEFAULT = 8 * MIB
SMALLEST = 5 * MIB
LARGEST = 5 * 1024 * MIB
_RESERVE = 1.25

# Share of the part numbers that is planned for the usual size. After it, parts double in steps of
# a twentieth of all part numbers.
_EQUAL = 0.7
_STEPS = 20

# Cloudflare R2 requires all parts but the last to be equal:
# https://developers.cloudflare.com/r2/objects/multipart-objects/
_WANTS_EQUAL = ".r2.cloudflarestorage.com"

# Memory of an upload: one part being filled, and one for each sender.
SENDERS = 2
BUFFERS = SENDERS + 1


@dataclass(frozen=True, slots=True)
class Sizes:
    """The part sizes of an upload, in bytes.

    The first ``equal`` parts have the size ``first``. After them the size doubles in steps, up to
    ``most`` parts, and up to the ``largest`` part that the store takes.
    """

    first: int
    most: int
    equal: int
    largest: int = LARGEST

    @property
    def grow(self) -> bool:
        """Whether later parts are larger than the first."""
        return self.equal < self.most

    def of(self, number: int) -> int:
        """Return the size of part ``number``, counted from 1."""
        if number <= self.equal:
            return self.first
        doubled = 1 + (number - self.equal - 1) // self._step
        return min(self.first << doubled, self.largest)

    @property
    def hold(self) -> int:
        """How many bytes fit into all parts together."""
        steps = range(self.equal + 1, self.most + 1, self._step)
        grown = (self.of(at) * min(self._step, self.most + 1 - at) for at in steps)
        return self.first * self.equal + sum(grown)

    @property
    def _step(self) -> int:
        return max(1, self.most // _STEPS)


def equal(size: int, max_parts: int) -> Sizes:
    """Return ``max_parts`` parts of one size."""
    return Sizes(size, max_parts, max_parts)


def size_for(expected_size: int, max_parts: int, largest: int = LARGEST) -> int:
    """Return the size in bytes of equal parts for an upload of ``expected_size`` bytes.

    It is a whole number of MiB. The upload and a quarter more fit into ``max_parts``, unless parts
    would have to be larger than the store allows.
    """
    needed = math.ceil(expected_size * _RESERVE / max_parts / MIB) * MIB
    return max(DEFAULT, min(needed, largest))


def sizes_for(
    expected_size: int,
    usual_size: int | None,
    max_parts: int,
    *,
    may_grow: bool,
    largest: int = LARGEST,
) -> Sizes:
    """Return the part sizes for an upload of at most about ``expected_size`` bytes.

    If the ``usual_size`` needs less memory, the first parts are chosen for it and a quarter more.
    Later parts grow, so that ``expected_size`` fits as well as it does into equal parts.
    """
    certain = equal(size_for(expected_size, max_parts, largest), max_parts)
    if usual_size is None or not may_grow:
        return certain
    equal_parts = max(1, int(max_parts * _EQUAL))
    sizes = Sizes(size_for(usual_size, equal_parts, largest), max_parts, equal_parts, largest)
    while sizes.first < certain.first and sizes.hold < min(certain.hold, expected_size * _RESERVE):
        sizes = Sizes(sizes.first + MIB, max_parts, equal_parts, largest)
    return sizes if sizes.first < certain.first else certain


def may_grow(endpoint: str | None) -> bool:
    """Return whether the store at an endpoint accepts unequal parts; None is AWS."""
    return endpoint is None or not f".{urlsplit(endpoint).hostname or ''}".endswith(_WANTS_EQUAL)
