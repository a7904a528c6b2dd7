"""How a setting is declared: the groups in settings/ are made of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


@dataclass(frozen=True, slots=True)
class Variable:
    """What the reference shows about a setting: its group, and the values it accepts."""

    group: str
    expected: str
    shown_default: str = ""


class Group(BaseModel):
    """Base of the groups of settings. Settings that do not belong to a group are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", validate_default=True)


def setting(group: str, expected: str, help_: str, *, shown_default: str = "", **rest: Any) -> Any:  # noqa: ANN401 - pydantic's Field is untyped too
    """Return the field of a setting; ``rest`` is its default and its bounds."""
    variable = Variable(group, expected, shown_default)
    # To mypy a JSON value is no object of ours; pydantic hands it back as it is.
    return Field(description=help_, json_schema_extra={"variable": variable}, **rest)  # type: ignore[dict-item]
