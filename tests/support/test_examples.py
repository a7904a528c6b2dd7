"""Hypothesis' examples have no deadline, since the machines that run them may be slow."""

from __future__ import annotations

import os
import time

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def test_no_example_has_a_deadline() -> None:
    assert settings.default is not None
    assert settings.default.deadline is None
    assert HealthCheck.too_slow in settings.default.suppress_health_check
    assert settings.default.derandomize == ("CI" in os.environ)


@settings(max_examples=2)
@given(st.booleans())
def test_a_test_with_settings_of_its_own_has_none_either(value: bool) -> None:  # noqa: FBT001
    if value:  # the default deadline is 200 ms
        time.sleep(0.3)
