"""How large the parts of a multipart upload are, and what they take and hold.

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

# Of an upload that may grow, so much is for what is expected. The rest are steps of a twentieth.
_EQUAL = 0.7
_STEPS = 20

# It wants all parts but the last to be equal:
# https://developers.cloudflare.com/r2/objects/multipart-objects/
_WANTS_EQUAL = ".r2.cloudflarestorage.com"

# Memory of an upload: one part being filled, and one in each sender.
SENDERS = 2
BUFFERS = SENDERS + 1


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of the parts of an upload, in bytes.

    The ``equal`` ones at the beginning have the size ``first``; after them it doubles in steps,
    until ``most`` parts are sent.
    """

    first: int
    most: int
    equal: int

    @property
    def grow(self) -> bool:
        """Whether not all of them are equal."""
        return self.equal < self.most

    def of(self, number: int) -> int:
        """Return the size of a part; the first has the number 1."""
        if number <= self.equal:
            return self.first
        doubled = 1 + (number - self.equal - 1) // self._step
        return min(self.first << doubled, LARGEST)

    @property
    def hold(self) -> int:
        """How many bytes fit into all of them."""
        steps = range(self.equal + 1, self.most + 1, self._step)
        grown = (self.of(at) * min(self._step, self.most + 1 - at) for at in steps)
        return self.first * self.equal + sum(grown)

    @property
    def _step(self) -> int:
        return max(1, self.most // _STEPS)


def equal(size: int, max_parts: int) -> Sizes:
    """Return parts of one size."""
    return Sizes(size, max_parts, max_parts)


def size_for(expected_size: int, max_parts: int) -> int:
    """Return the size of equal parts in bytes for an upload of ``expected_size`` bytes.

    It is a whole number of MiB, large enough that the upload and a quarter more fit into
    ``max_parts``, as far as a part may be that large.
    """
    fitting = math.ceil(expected_size * _RESERVE / max_parts / MIB) * MIB
    return max(DEFAULT, min(fitting, LARGEST))


def sizes_for(
    expected_size: int, usual_size: int | None, max_parts: int, *, may_grow: bool
) -> Sizes:
    """Return the sizes for an upload that cannot be larger than about ``expected_size`` bytes.

    If it has a ``usual_size`` that needs less memory, parts fit that one and a quarter more. They
    grow if the upload does, so that ``expected_size`` fits as well as with equal parts.
    """
    certain = equal(size_for(expected_size, max_parts), max_parts)
    if usual_size is None or not may_grow:
        return certain
    equal_parts = max(1, int(max_parts * _EQUAL))
    sizes = Sizes(size_for(usual_size, equal_parts), max_parts, equal_parts)
    while sizes.first < certain.first and sizes.hold < min(certain.hold, expected_size * _RESERVE):
        sizes = Sizes(sizes.first + MIB, max_parts, equal_parts)
    return sizes if sizes.first < certain.first else certain


def may_grow(endpoint: str | None) -> bool:
    """Tell whether the store at an endpoint takes parts of different sizes; None is AWS."""
    return endpoint is None or not f".{urlsplit(endpoint).hostname or ''}".endswith(_WANTS_EQUAL)
