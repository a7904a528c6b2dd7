"""Checks all values of settings at once, and puts what is wrong into full sentences."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError

from pgstash.postgres.server import conninfo, foreign_parameters
from pgstash.settings import aws, odd_values, spelling
from pgstash.settings.declaration import Group
from pgstash.settings.model import Need, variable_of
from pgstash.settings.validators import ExplainedError, MissingError

_Group = TypeVar("_Group", bound=Group)

_DATABASE_URLS = ("DATABASE_URL", "RESTORE_URL", "VERIFY_DATABASE_URL")
_ABOUT_SCHEMAS = {
    "DATABASE_URL": " The backup is not limited to that schema.",
    "RESTORE_URL": " Objects are restored into the schemas that they were in.",
}


@dataclass(frozen=True, slots=True)
class Values:
    """All variables with their values, before they are checked. ``values`` may be secret."""

    values: dict[str, str] = field(repr=False)
    everything: Mapping[str, str] = field(repr=False)
    """The values, and all other variables of the environment, even empty ones."""
    needs: Collection[Need]
    unused: Collection[str]
    labels: Mapping[str, str]
    problems: list[str]

    def label(self, variable: str) -> str:
        """Return how the user set a variable: its name, or an option of the command line."""
        return self.labels.get(variable, variable)

    def near_misses(self, setting: str) -> str:
        """Return a sentence about variables that may be meant; empty if there are none."""
        found = spelling.near_misses(setting, self.everything)
        return f" {found}" if found else ""


def checked(
    group: type[_Group], given: Values, edges: list[odd_values.Edges], unreadable: Collection[str]
) -> tuple[_Group | None, list[str]]:
    """Return the settings of a group, None if one is wrong, and notes about ignored parameters.

    White space around a value is a problem if the value is refused with it. Then it is taken out
    of ``edges``, and the rest of the value is checked.
    """
    settings, notes, errors = _validated(group, given)
    refused = _refused(errors)
    wrong = [edge for edge in edges if edge.hopeless or edge.variable in refused]
    if wrong:
        given.values.update({edge.variable: edge.inner for edge in wrong})
        edges[:] = [edge for edge in edges if edge not in wrong]
        settings, notes, errors = _validated(group, given)
        refused = _refused(errors)
        given.problems.extend(
            edge.problem(given.label(edge.variable))
            for edge in wrong
            if edge.kept or edge.variable not in refused
        )
    for detail in errors:
        if str(detail["loc"][0]).upper() not in unreadable:
            given.problems.extend(_problems(detail, given))
    return settings, notes


def _refused(errors: Sequence[Any]) -> set[str]:
    return {str(detail["loc"][0]).upper() for detail in errors}


def _validated(
    group: type[_Group], given: Values
) -> tuple[_Group | None, list[str], Sequence[Any]]:
    """Return the settings, notes about ignored parameters, and pydantic's error details.

    Invalid values of unused settings are dropped.
    """
    values, notes = _without_ignored_parameters(group, given)
    needs = frozenset({*given.needs, *aws.required(given.values, given.everything)})
    while True:
        try:
            settings = group.model_validate(values, context=needs)
        except ValidationError as error:
            errors = error.errors(include_input=False)
        else:
            return settings, notes, []
        wrong = {str(detail["loc"][0]) for detail in errors}
        droppable = wrong.intersection(given.unused, values)
        if not droppable:
            return None, notes, errors
        for name in droppable:
            del values[name]


def _without_ignored_parameters(
    group: type[Group], given: Values
) -> tuple[dict[str, str], list[str]]:
    """Return the values of settings without parameters of frameworks, and notes about those."""
    values = {
        name: value for name in group.model_fields if (value := given.values.get(name.upper()))
    }
    notes = []
    for variable in _DATABASE_URLS:
        name = variable.lower()
        if name not in values:
            continue
        values[name], ignored = foreign_parameters.without_ignored(values[name])
        used = name not in given.unused and (variable != "RESTORE_URL" or "target" in given.needs)
        if ignored and used:
            has_schema = foreign_parameters.SCHEMAS.intersection(ignored)
            notes.append(
                f"Ignoring {', '.join(ignored)} in {given.label(variable)}: only other programs "
                f"use this.{_ABOUT_SCHEMAS.get(variable, '') if has_schema else ''}"
            )
    return values, notes


def _problems(detail: Any, given: Values) -> list[str]:  # noqa: ANN401 - pydantic's error details
    name = str(detail["loc"][0])
    label = given.label(name.upper())
    expected = variable_of(name).expected
    value = given.values.get(name.upper(), "")
    unresolved = " It contains ${{…}}, a reference that was not replaced."
    more = unresolved if odd_values.contains_reference(value) else ""
    if detail["type"] != "value_error":
        return [f"{label} must be {expected}.{more}"]
    error = detail["ctx"]["error"]
    if isinstance(error, conninfo.UnusableUriError):
        ends = ["" if reason.endswith("?") else "." for reason in error.reasons]
        return [f"{label} {reason}{end}" for reason, end in zip(error.reasons, ends, strict=True)]
    if isinstance(error, ExplainedError):
        return [f"{error.variable or label} {error}.{more}"]
    near = given.near_misses(name.upper()) if isinstance(error, MissingError) else ""
    return [f"{label} {error}. Expected: {expected}.{near}{more}"]
