"""The copies of ``COPY_TO``: reads and checks the settings of each, like those of the primary."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

from pgstash.counting import counted
from pgstash.settings import aws, copy_to, places, roles, spelling, store_url
from pgstash.settings.copy_to import CopyStore
from pgstash.settings.model import Need, Settings
from pgstash.settings.preparation import judge_odd_values, read_secret_files
from pgstash.settings.validation import Values, checked

_NEEDS: Sequence[Need] = ("storage",)
_READ_TO_COPY = (
    f"{roles.SETTING} must be full: pgstash reads a copy to find what it lacks. Protect it from "
    "deletion with S3_OBJECT_LOCK_DAYS."
)


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy: its store, None if a setting is wrong; ``secrets`` are those of its identity."""

    name: str
    store: CopyStore | None
    problems: Sequence[str]
    misspelt: Sequence[str]
    odd_values: Sequence[str] = ()
    secrets: Sequence[str] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Outside:
    """Where values come from: ``given`` is not from a ``.env`` file, ``of_file`` is."""

    environ: MutableMapping[str, str] = field(repr=False)
    given: Mapping[str, str] = field(repr=False)
    of_file: Mapping[str, str] = field(repr=False)


def read(sources: Values, outside: Outside) -> list[Copy]:
    """Return the copies that COPY_TO names; none if the command needs no store.

    The variables of AWS in a ``.env`` file are set in the environment if a copy may need them.
    """
    if not {"storage", "copies"} & {*sources.needs}:
        return []
    every = names(sources.values)
    return [_read(name, every, sources, outside) for name in every]


def names(values: Mapping[str, str]) -> list[str]:
    """Return what COPY_TO names; nothing if it is malformed, which is reported elsewhere."""
    try:
        return copy_to.parse(values["COPY_TO"]) if "COPY_TO" in values else []
    except ValueError:
        return []


def _read(name: str, every: Sequence[str], sources: Values, outside: Outside) -> Copy:
    def own(values: Mapping[str, str]) -> dict[str, str]:
        found = {variable: copy_to.split(variable, every) for variable in values}
        return {
            each[1]: values[variable]
            for variable, each in found.items()
            if each and each[0] == name
        }

    written = own(sources.everything)
    if not any(value for setting, value in written.items() if setting in copy_to.VARIABLES):
        first = copy_to.first_part(name)
        problem = f"COPY_TO names {name}, but none of its settings is set. Set {first}STORAGE_URL."
        return Copy(name, None, [problem], list(_misspelt(name, written)))
    # The identity of AWS is not pgstash's own: a copy may use it as the primary may.
    ambient = {
        variable: value
        for variable, value in sources.values.items()
        if variable.startswith("AWS_") or variable == "HOME"
    }
    values = {each: text for each, text in own(sources.values).items() if each in copy_to.VARIABLES}
    values |= ambient
    given = Values(
        values=values,
        everything=ambient | written,
        needs=_NEEDS,
        unused=(),
        labels=aws.label_of_region(values),
        problems=[],
    )
    edges, odd = judge_odd_values(given, own(outside.given))
    unreadable = read_secret_files(given, edges)
    given.problems.extend(store_url.settle(values))
    if values.get(roles.SETTING, "").strip() == roles.WRITER:
        given.problems.append(_READ_TO_COPY)
    aws.settle(outside.environ, values, outside.of_file)
    store, _ = checked(CopyStore, given, edges, unreadable)
    odd += [edge.warning for edge in edges if not edge.usual]
    return Copy(
        name,
        None if given.problems else store,
        [copy_to.as_written(each, name, written) for each in given.problems],
        list(_misspelt(name, written)),
        [copy_to.as_written(each, name) for each in odd],
        aws.secrets(values),
    )


def _misspelt(name: str, written: Mapping[str, str]) -> Iterator[str]:
    """Yield warnings about variables of a copy that are not settings of one."""
    first = copy_to.first_part(name)
    for setting, value in written.items():
        if (
            not value
            or setting in copy_to.VARIABLES
            or spelling.is_of_kubernetes(f"{first}{setting}")
        ):
            continue
        close = difflib.get_close_matches(setting, sorted(copy_to.VARIABLES), n=1, cutoff=0.8)
        if close:
            yield f"{first}{setting} is not a pgstash setting. Did you mean {first}{close[0]}?"
        else:
            yield f"{first}{setting} is not a setting of a copy; it is ignored."


def is_handled(variable: str, every: Sequence[str]) -> bool:
    """Return whether this module warns about a variable, if a warning is due."""
    return bool(copy_to.setting_of(variable) or copy_to.split(variable, every))


def unnamed(values: Mapping[str, str], every: Sequence[str]) -> Iterator[str]:
    """Yield a warning for each copy that has settings, but is not in COPY_TO."""
    found: dict[str, list[str]] = {}
    for variable in sorted(values):
        if copy_to.setting_of(variable) and not copy_to.split(variable, every):
            found.setdefault(copy_to.name_in(variable), []).append(variable)
    for name, variables in found.items():
        more = len(variables) - 1
        are = f"and {counted(more, 'similar variable')} are" if more else "is"
        if not every:
            yield f"{variables[0]} {are} ignored, because COPY_TO is not set. Set COPY_TO={name}."
            continue
        close = difflib.get_close_matches(name, every, n=1, cutoff=0.6)
        remedy = f"Did you mean {close[0]}?" if close else f"Add {name} to COPY_TO."
        yield f"{variables[0]} {are} ignored, because COPY_TO does not name {name}. {remedy}"


def in_one_place(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield the copies that are in the place of the primary or of another copy, and the problem."""
    taken = {places.of(settings): "the primary"}
    for name in settings.copy_names:
        copy = settings.of_copy(name)
        place = places.of(copy)
        other = taken.setdefault(place, f"the copy {name}")
        if other != f"the copy {name}":
            yield (
                name,
                (
                    f"The copy {name} is in the same place as {other}. Give it another store, or "
                    f"another {copy.as_written('BACKUP_PREFIX')}."
                ),
            )
        for problem in store_url.unusable_prefix(copy.store, copy.backup_prefix):
            yield name, copy.as_written(problem)
