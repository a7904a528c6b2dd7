"""How large the parts of a multipart upload are, and what they take and hold.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
"""

from __future__ import annotations

import math

MIB = 1024 * 1024
DEFAULT = 8 * MIB
SMALLEST = 5 * MIB
LARGEST = 5 * 1024 * MIB
_RESERVE = 1.25

# Memory of an upload: one part being filled, and one in each sender.
SENDERS = 2
BUFFERS = SENDERS + 1


def size_for(expected_size: int, max_parts: int) -> int:
    """Return the size of a part in bytes for an upload of ``expected_size`` bytes.

    It is a whole number of MiB, large enough that the upload and a quarter more fit into
    ``max_parts``, as far as a part may be that large.
    """
    fitting = math.ceil(expected_size * _RESERVE / max_parts / MIB) * MIB
    return max(DEFAULT, min(fitting, LARGEST))
