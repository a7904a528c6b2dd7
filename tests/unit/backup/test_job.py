"""What a plan of a backup allows, whatever the settings were."""

from __future__ import annotations

import pytest

from pgstash.backup.job import Plan
from pgstash.backup.sealing import Keys
from pgstash.processes.hooks import Hooks


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("passphrase", ["k" * 32, None])
def test_passwords_of_roles_are_stored_encrypted_alone(
    passphrase: str | None, *, wanted: bool
) -> None:
    plan = Plan(
        source_url="",
        prefix="p",
        compression_level=6,
        keys=Keys(passphrase),
        jobs=1,
        lock_seconds=60,
        idle_seconds=60,
        environment={},
        options=(),
        required=(),
        hooks=Hooks(),
        anomaly_ratio=0,
        globals_passwords=wanted,
    )
    assert plan.stores_passwords is (wanted and passphrase is not None)
