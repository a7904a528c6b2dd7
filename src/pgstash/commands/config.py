"""What `pgstash config` checks and shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import SecretStr

from pgstash.commands import jobs
from pgstash.counting import counted
from pgstash.errors import ConfigurationError
from pgstash.monitoring.redaction import MASK, Scrubber
from pgstash.postgres.server import conninfo
from pgstash.settings import Settings
from pgstash.settings.config.file import Config
from pgstash.settings.store_url import StoreUrl


@dataclass(frozen=True, slots=True)
class ShownJob:
    """A job without secrets; ``settings`` are those that differ from their default."""

    name: str
    source: str
    store: str
    prefix: str
    labels: tuple[str, ...]
    settings: dict[str, object]


@dataclass(frozen=True, slots=True)
class Shown:
    """All jobs that are known, and warnings about servers that are not."""

    jobs: list[ShownJob]
    warnings: list[str]


def summary(settings: Settings) -> str:
    """Return what a file without problems has. Raises ConfigurationError if there is none."""
    config = _file(settings)
    exceptions = sum(len(config.exceptions(server)) for server in config.servers)
    servers = counted(len(config.servers), "server")
    return f"{config.path}: {servers}, {counted(exceptions, 'database section')}, no problems"


def shown(settings: Settings) -> Shown:
    """Return all jobs of the file, or the one that was chosen. Raises ConfigurationError."""
    config = _file(settings)
    if settings.job:
        return Shown([_shown(settings)], settings.warnings())
    found = jobs.on_server(settings)
    warnings = list(config.process().warnings())
    every = [each.settings for each in found.jobs]
    for server, error in found.unreachable.items():
        warnings.append(f"The databases of {server} are not known: {error.message}")
        every += [config.of_exception(server, each) for each in config.exceptions(server)]
    warnings += [
        f"{name} is in the file, but not on the server." for name in (*found.missing, *found.unused)
    ]
    return Shown([_shown(each) for each in every], warnings)


def _file(settings: Settings) -> Config:
    if settings.origin.config is None:
        raise ConfigurationError(
            ["There is no configuration file. Name one with PGSTASH_CONFIG, or with --config PATH."]
        )
    return settings.origin.config


def _shown(settings: Settings) -> ShownJob:
    scrub = Scrubber(settings.secrets()).scrub
    return ShownJob(
        settings.job,
        scrub(_source(settings)),
        scrub(_store(settings)),
        settings.backup_prefix,
        _file(settings).labels(*settings.job.split("/", 1)),
        dict(_differing(settings)),
    )


def _source(settings: Settings) -> str:
    return f"{conninfo.address(settings.source_url)}/{conninfo.named(settings.source_url)[1]}"


def _store(settings: Settings) -> str:
    found = settings.store or StoreUrl("s3", settings.s3_bucket or "")
    account = f"{found.account}/" if found.account else ""
    return f"{found.scheme}://{account}{found.name}"


def _differing(settings: Settings) -> Iterator[tuple[str, object]]:
    scrub = Scrubber(settings.secrets()).scrub
    for name, declared in type(settings).model_fields.items():
        value = getattr(settings, name)
        if value == declared.default or name == "pgstash_config":
            continue
        if isinstance(value, SecretStr):
            yield name, MASK
        else:
            yield name, scrub(value) if isinstance(value, str) else value
