"""Translates errors of the operating system into errors of the store, by errno."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pgstash.errors import (
    ObjectNotFoundError,
    StorageError,
    StorageRefusedError,
    StorageUnreachableError,
)

_RIGHTS = (
    "Check the owner and the mode of the folder: the user that runs pgstash must be able to read "
    "and write there."
)
_NAME = "The file system does not allow that name. Check BACKUP_PREFIX."
_BROKEN = "Check the disk or the mounted share and the kernel log."
_LIMIT = "The machine is short of that resource. Raise the limit (ulimit) or end other processes."

# Refusals, which last until something is changed. Failures may end on their own.
_REFUSALS: Mapping[int, str] = {
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: "The file system is mounted read-only. Check the kernel log for a damaged disk, "
    "and remount it.",
    errno.ENOSPC: "Free space or shorten the retention.",
    errno.EDQUOT: "A quota is used up. Raise it, free space, or shorten the retention.",
    errno.EFBIG: "The file system or a limit (ulimit -f) does not allow a file of that size.",
    errno.ENAMETOOLONG: "The path is too long. Shorten BACKUP_PREFIX or the path in STORAGE_URL.",
    errno.ELOOP: "A symbolic link in the path points to itself. Remove it.",
    errno.EINVAL: _NAME,
    errno.EILSEQ: _NAME,
    errno.ENOTDIR: "There is a file where a folder must be. Move it away.",
    errno.EEXIST: "There is a file where a folder must be. Move it away.",
    errno.EISDIR: "There is a folder where a file must be. Move it away.",
}
_FAILURES: Mapping[int, str] = {
    **dict.fromkeys(
        (
            errno.ECONNABORTED,
            errno.ECONNREFUSED,
            errno.ECONNRESET,
            errno.EHOSTDOWN,
            errno.EHOSTUNREACH,
            errno.EIO,
            errno.ENETDOWN,
            errno.ENETUNREACH,
            errno.ENODEV,
            errno.ENOLCK,
            errno.ENOTCONN,
            errno.EREMOTEIO,
            errno.ESHUTDOWN,
            errno.ESTALE,
            errno.ETIMEDOUT,
        ),
        _BROKEN,
    ),
    **dict.fromkeys((errno.EAGAIN, errno.EBUSY, errno.EINTR), _BROKEN),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE, errno.ENOMEM), _LIMIT),
}
_MISSING = {errno.ENOENT, errno.ENOTDIR}


def read_error(exc: OSError, doing: str) -> StorageError:
    """Return the error of pgstash for a failed read; ``doing`` completes "cannot …"."""
    if exc.errno in _MISSING:
        return ObjectNotFoundError(_message(exc, doing))
    return write_error(exc, doing)


def write_error(exc: OSError, doing: str) -> StorageError:
    """Return the error for a failed write; a missing file is not a missing object there."""
    message, code = _message(exc, doing), exc.errno or 0
    if code == errno.ENOENT:
        return StorageUnreachableError(message, hint="Was the folder removed or unmounted?")
    if code in _FAILURES:
        return StorageUnreachableError(message, hint=_FAILURES[code])
    hint = _REFUSALS.get(code, "Check the folder and its file system.")
    return StorageRefusedError(message, hint=hint)


@contextmanager
def reading(doing: str) -> Iterator[None]:
    """Raise :func:`read_error` for an OSError in the block."""
    try:
        yield
    except OSError as exc:
        raise read_error(exc, doing) from exc


@contextmanager
def writing(doing: str) -> Iterator[None]:
    """Raise :func:`write_error` for an OSError in the block."""
    try:
        yield
    except OSError as exc:
        raise write_error(exc, doing) from exc


def _message(exc: OSError, doing: str) -> str:
    return f"cannot {doing}: {exc.strerror or exc}"
