"""The workflows run only what cannot change under its name."""

from __future__ import annotations

import re
from pathlib import Path

WORKFLOWS = Path(__file__).parents[2] / ".github" / "workflows"


def test_each_action_is_pinned_to_a_commit_and_names_its_version() -> None:
    used = re.findall(
        r"(?m)^\s*-?\s*uses:\s*(.+)$",
        "".join(map(Path.read_text, sorted(WORKFLOWS.glob("*.y*ml")))),
    )
    assert used
    assert [
        each for each in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[\d.]+", each)
    ] == []
