"""The places that backups are copied to: copies by name, folders, and stores by their URLs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pgstash.commands import copies
from pgstash.errors import ConfigurationError
from pgstash.settings import Request, Settings, jobs, load, places, store_url
from pgstash.settings.copy_to import CopyStore


def of(settings: Settings, wanted: Sequence[str]) -> list[copies.Copy]:
    """Return the places that are wanted: copies by name, folders, and stores by their URLs.

    Raises ConfigurationError with all problems.
    """
    known = {each.name: each for each in copies.of(settings)}
    if not wanted:
        if not known:
            whose = f" the backups of {settings.job}" if settings.job else ""
            problem = (
                f"It is not known where to copy{whose} to. Name a folder or the URL of a store "
                "with --to, for example --to /mnt/disk, or set COPY_TO."
            )
            raise ConfigurationError([problem])
        return list(known.values())
    found: list[copies.Copy] = []
    problems: list[str] = []
    for name in dict.fromkeys(wanted):
        if copy := known.get(name.lower()):
            found.append(copy)
            continue
        try:
            found.append(_other(settings, name))
        except ValueError as error:
            problems.append(f"--to {error}")
        except ConfigurationError as error:
            problems += error.problems
    if problems:
        raise ConfigurationError(problems)
    return found


def _other(settings: Settings, name: str) -> copies.Copy:
    """Return the copy in a place that is not in COPY_TO. Raises what :func:`_by_url` raises."""
    if "://" in name:
        return _by_url(settings, name)
    if "/" in name:
        return _folder(settings, name, Path(name).absolute())
    known = ", ".join(settings.copy_names) or "nothing"
    raise ValueError(f"{name} is not in COPY_TO, which names {known}. For a folder, write ./{name}")


def _by_url(settings: Settings, url: str) -> copies.Copy:
    """Return the copy in the store of a URL. Raises ValueError with the reason.

    All but the place is configured as for the primary. Raises ConfigurationError if that does not
    suffice.
    """
    place = store_url.parse(url)
    if place.scheme == "file":
        return _folder(settings, url, Path(place.name))
    try:
        store = _primary_at(settings, url)
    except ConfigurationError as error:
        instead = (
            f"--to {url} is opened with the settings of the primary. If it needs others, name it "
            "in COPY_TO, and set COPY_<NAME>_STORAGE_URL and what else it needs."
        )
        raise ConfigurationError([*error.problems, instead]) from error
    own = {each: getattr(store, each) for each in CopyStore.model_fields}
    if not place.prefix:
        own["backup_prefix"] = settings.backup_prefix
    if unusable := store_url.unusable_prefix(place, own["backup_prefix"]):
        raise ConfigurationError(unusable)
    return _placed(settings, url, own)


def _primary_at(settings: Settings, url: str) -> Settings:
    """Return the settings of a job as ``--from`` with this URL gives them.

    Raises ConfigurationError.
    """
    needed = Request(["storage"], {"STORAGE_URL": url}, only_reads=True)
    config, server = settings.origin.config, settings.origin.server
    if config is None:
        found = load(needs=needed.needs, given=needed.given, only_reads=True)
    else:
        found = replace(config, request=needed).server(server)
    database = settings.job.removeprefix(f"{server}/") if server else settings.job
    return jobs.of_database(found, database) if database else found


def _folder(settings: Settings, name: str, folder: Path) -> copies.Copy:
    """Return the copy in a folder. Raises ValueError with the reason."""
    own = {"storage_url": folder.as_uri(), "s3_object_lock_days": None}
    return _placed(settings, name, own)


def _placed(settings: Settings, name: str, own: Mapping[str, object]) -> copies.Copy:
    """Return a copy whose place differs from that of the primary. Raises ValueError if not."""
    copy = copies.Copy(name, settings.model_copy(update={**own, "prune_versions": False}))
    if places.of(copy.settings) == places.of(settings):
        where = "folder" if copy.settings.storage_folder else "place"
        raise ValueError(f"{name} is the {where} that the backups are in. Name another one")
    return copy


def refuse_one_place(of_jobs: Sequence[Settings], to: Sequence[str]) -> None:
    """Raise ConfigurationError if two jobs would be copied to the same place.

    Jobs whose stores or prefixes differ may get one prefix in another store, where no command
    could distinguish their backups by job.
    """
    problems: list[str] = []
    claims: dict[tuple[str, ...], str] = {}
    for settings in of_jobs:
        for target in of(settings, to):
            place = places.of(target.settings)
            other = claims.setdefault(place, settings.job) if place else settings.job
            if other != settings.job:
                problems.append(
                    f"{other} and {settings.job} would be copied to the same place in "
                    f"{target.name}: both get the prefix {target.settings.backup_prefix} there. "
                    "Copy each with --job to a place of its own."
                )
    if problems:
        raise ConfigurationError(problems)
