"""Reads JSON into dataclasses: known keys must have values of their type, others are ignored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Kind = TypeVar("_Kind", bound="DataclassInstance")


def read(kind: type[_Kind], value: object, **ready: object) -> _Kind:
    """Return the dataclass of a JSON object, with the fields that are ``ready`` already.

    Unknown keys are ignored: a later version may have written them. Raises TypeError if a key
    without a default is missing, or if a value is not of its type.
    """
    if not isinstance(value, dict):
        raise TypeError(f"{kind.__name__} is not an object")
    hints = get_type_hints(kind)
    names = [each.name for each in fields(kind) if each.name in value and each.name not in ready]
    return kind(**{name: _typed(hints[name], value[name], name) for name in names}, **ready)


def read_rows(kind: type[_Kind], value: object) -> list[_Kind]:
    """Return the dataclasses of ``{"columns": [name, …], "rows": [[value, …], …]}``.

    The check is by column, which takes a fraction of the time for a million rows. Raises what
    :func:`read` raises, KeyError, and ValueError if a row does not have one value for each column.
    """
    if not isinstance(value, dict):
        raise TypeError(f"the table of each {kind.__name__} is not an object")
    names: list[str] = value["columns"]
    rows: list[list[Any]] = value["rows"]
    if any(type(each) is not list for each in (names, rows, *rows)):
        raise TypeError(f"the table of each {kind.__name__} has no rows and columns")
    if any(len(row) != len(names) for row in rows):
        raise ValueError(f"a row of {kind.__name__} does not fit its columns")
    hints = get_type_hints(kind)
    columns = []
    for each in fields(kind):
        if each.name in names:
            at = names.index(each.name)
            column = [row[at] for row in rows]
            for sample in _samples(hints[each.name], column):
                _typed(hints[each.name], sample, each.name)
            columns.append(column)
        elif each.default is not MISSING:
            columns.append([each.default] * len(rows))
        else:
            raise TypeError(f"{kind.__name__} lacks {each.name}")
    return list(map(kind, *columns))


def _samples(hint: object, column: Iterable[object]) -> Iterable[object]:
    """Return the values of a column to check: one of each type, or each distinct word."""
    if any(get_origin(each) is Literal for each in (hint, *get_args(hint))):
        return set(column)
    return {type(cell): cell for cell in column}.values()


def _typed(hint: object, value: object, name: str) -> object:
    """Return a value of this type as the dataclass holds it. Raises TypeError."""
    if get_origin(hint) in (Union, UnionType):
        if value is None and NoneType in get_args(hint):
            return None
        [hint] = [each for each in get_args(hint) if each is not NoneType]
    if isinstance(hint, type) and is_dataclass(hint):
        return read(hint, value)
    if get_origin(hint) is Literal and type(value) is str and value in get_args(hint):
        return value
    if get_origin(hint) is Sequence and type(value) is list:
        [item] = get_args(hint)
        return [_typed(item, each, name) for each in value]
    if type(value) is not hint:  # True is not a number here
        raise TypeError(f"{name} has a value of the wrong type: {value!r:.100}")
    return value
