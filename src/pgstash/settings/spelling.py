"""Names of variables that are almost those of settings, or mean the same elsewhere."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Collection, Mapping

from pgstash.settings.model import Settings, is_secret

# Prefixes that only pgstash uses, except for the variables that Kubernetes sets for services; and
# prefixes that other programs use too, but hardly in a .env file of pgstash.
_OUR_NAMES = re.compile(r"(BACKUP|RETENTION)_")
_OUR_NAMES_IN_FILE = re.compile(r"(BACKUP|COPY|HOOK|RESTORE|RETENTION|S3|VERIFY|WEBHOOK)_")
_OF_KUBERNETES = re.compile(r"_SERVICE_(HOST|PORT)|_PORT(_\d+_\w+)?$")

# What others call a setting: the AWS CLI and its SDKs; `fly storage create`
# (https://fly.io/docs/js/the-basics/object-storage); the integrations of Vercel
# (https://www.prisma.io/docs/guides/postgres/vercel, https://neon.com/faqs/find-database-url-neon);
# Railway (DATABASE_PUBLIC_URL, DATABASE_PRIVATE_URL); Prisma (DIRECT_URL).
_ELSEWHERE = {
    "DATABASE_URL": (
        "POSTGRES_URL",
        "POSTGRESQL_URL",
        "POSTGRES_URI",
        "POSTGRES_URL_NON_POOLING",
        "POSTGRES_PRISMA_URL",
        "PRISMA_DATABASE_URL",
        "DATABASE_URL_UNPOOLED",
        "DATABASE_PRIVATE_URL",
        "DATABASE_PUBLIC_URL",
        "DATABASE_DSN",
        "DIRECT_URL",
        "DB_URL",
        "PG_URL",
    ),
    "S3_ENDPOINT": (
        "AWS_ENDPOINT_URL_S3",
        "AWS_ENDPOINT_URL",
        "AWS_S3_ENDPOINT",
        "S3_ENDPOINT_URL",
        "S3_URL",
    ),
    "S3_BUCKET": (
        "AWS_S3_BUCKET_NAME",
        "AWS_S3_BUCKET",
        "AWS_BUCKET",
        "S3_BUCKET_NAME",
        "BUCKET_NAME",
    ),
    "S3_ACCESS_KEY_ID": ("AWS_ACCESS_KEY_ID", "S3_ACCESS_KEY"),
    "S3_SECRET_ACCESS_KEY": ("AWS_SECRET_ACCESS_KEY", "S3_SECRET_KEY", "S3_SECRET"),
    "BACKUP_ENCRYPTION_KEY": ("ENCRYPTION_KEY", "BACKUP_PASSPHRASE", "BACKUP_KEY"),
    "RESTORE_URL": ("RESTORE_DATABASE_URL", "TARGET_DATABASE_URL", "TARGET_URL"),
}
_CLOSE = 0.85


def near_misses(setting: str, names: Mapping[str, str]) -> str:
    """Return a sentence about variables that may be meant as a missing setting; empty if none.

    ``names`` are all variables with their values, which are not shown.
    """
    found = meant(setting, names)
    if not found:
        return f"{setting} is set, but empty." if names.get(setting) == "" else ""
    if len(found) == 1:
        return f"{found[0]} is set, which pgstash does not read. Rename it to {setting} if it fits."
    listed = f"{', '.join(found[:-1])} and {found[-1]}"
    return f"{listed} are set, which pgstash does not read. Rename one to {setting} if it fits."


def meant(setting: str, names: Mapping[str, str]) -> list[str]:
    """Return the variables with a value that may be meant as a setting."""
    close = close_to(setting, names)
    others = [name for name in _ELSEWHERE.get(setting, ()) if names.get(name) and name not in close]
    return sorted(close) + others


def close_to(setting: str, names: Mapping[str, str]) -> list[str]:
    """Return the variables with a value whose names are almost that of a setting."""
    known = _known()
    targets = [setting, f"{setting}_FILE"] if is_secret(setting.lower()) else [setting]
    return [
        name
        for name, value in names.items()
        if value and name not in known and _closest(name.upper(), tuple(targets), _CLOSE)
    ]


@functools.cache
def _known() -> tuple[str, ...]:
    known = [name.upper() for name in Settings.model_fields]
    files = [f"{name.upper()}_FILE" for name in Settings.model_fields if is_secret(name)]
    return (*known, *files)


@functools.lru_cache(maxsize=4096)  # the same environment is checked for each of many jobs
def _closest(name: str, known: tuple[str, ...], cutoff: float) -> list[str]:
    """Return the name that is almost this one, in a list; an empty list if there is none."""
    return difflib.get_close_matches(name, known, n=1, cutoff=cutoff)


def misspelt(names: Collection[str], of_file: Collection[str] = ()) -> list[str]:
    """Return warnings for variables that look like settings, but are not.

    The rule is stricter for variables in a ``.env`` file, which is for pgstash alone.
    """
    known = _known()
    found = []
    for name in names:
        close = _closest(name, known, 0.92)
        if name in known or (close and close[0] in names):
            continue
        if not close and _is_like_ours(name, known, in_file=name in of_file):
            close = _closest(name, known, 0.8)
            if not close:
                found.append(f"{name} is not a pgstash setting; it is ignored.")
        if close:
            found.append(f"{name} is not a pgstash setting. Did you mean {close[0]}?")
    return found


def _is_like_ours(name: str, known: Collection[str], *, in_file: bool) -> bool:
    """Return whether a name starts like a setting, or ends like one without its first word."""
    if in_file:
        ends_so = "_" in name and any(each.endswith(f"_{name}") for each in known)
        return ends_so or bool(_OUR_NAMES_IN_FILE.match(name))
    return bool(_OUR_NAMES.match(name)) and not is_of_kubernetes(name)


def is_of_kubernetes(name: str) -> bool:
    """Return whether Kubernetes may have set a variable, for a service."""
    return _OF_KUBERNETES.search(name) is not None
