"""The preflight of AWS KMS: each key that new backups are encrypted for encrypts something."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pgstash.check.finding import Finding
from pgstash.errors import EncryptionError
from pgstash.format import kms
from pgstash.kms import wrapping

_ID_BYTES = 8
_TRIAL_BYTES = 32


@dataclass(frozen=True, slots=True)
class Plan:
    """The ARNs of the keys, the service, and a source of random bytes."""

    arns: Sequence[str]
    open: wrapping.Open
    random: Callable[[int], bytes]


def look(plan: Plan) -> Iterator[Finding]:
    """Let each key encrypt a random value, as a backup would; nothing is stored."""
    context = kms.context(plan.random(_ID_BYTES).hex())
    for arn in plan.arns:
        try:
            plan.open().encrypt(arn, plan.random(_TRIAL_BYTES), context)
        except EncryptionError as error:
            yield Finding.of("KMS key", error)
        else:
            yield Finding("KMS key", "ok", f"{arn} encrypts")
