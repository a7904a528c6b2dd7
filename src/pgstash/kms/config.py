"""As whom, and how patiently, KMS is asked."""

from __future__ import annotations

from dataclasses import dataclass

from pgstash.storage.s3.config import Signer


@dataclass(frozen=True, slots=True)
class KmsConfig:
    """The identity, and the retries.

    The region of ``signer`` is where a role is assumed: each key names its own region in its ARN.
    ``retry_attempts`` come after the first try, ``retry_delay`` is in seconds.
    """

    signer: Signer
    retry_attempts: int = 3
    retry_delay: float = 5.0
