"""Validators of single values: each returns the value, or raises ValueError with the reason.

The reason follows the name of the setting, and what is expected follows the reason.
"""

from __future__ import annotations

import base64
import binascii
import re
import shutil
import ssl
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from pydantic import SecretStr

from pgstash.postgres.dump import required_tables as required
from pgstash.postgres.server import conninfo
from pgstash.postgres.tools import pg_dump_options
from pgstash.processes import hooks
from pgstash.service import blackout as blackouts
from pgstash.service import schedule
from pgstash.settings import store_url, tags

_SHORTEST_INTERVAL = 60
_LONGEST_IDENTITY = 64 * 1024  # bytes; as of other files with secrets
_PATHS = ("/", "./", "../", "~/")
_NO_WEB_URL = "is not a valid http:// or https:// URL"


class ExplainedError(ValueError):
    """A reason that contains what is expected; about another ``variable``, if one is given."""

    def __init__(self, reason: str, *, variable: str = "") -> None:
        """Store the reason and the variable."""
        super().__init__(reason)
        self.variable = variable


class MissingError(ValueError):
    """A required setting is not set; the reason is ``is missing``, and why it is required."""


def database_url(url: SecretStr) -> SecretStr:
    """Return a connection string that libpq can read."""
    conninfo.parse(url.get_secret_value())
    return url


def target_url(url: SecretStr) -> SecretStr:
    """Return a connection string that libpq can read and that names a database."""
    if not conninfo.parse(url.get_secret_value()).get("dbname"):
        raise ValueError("does not name a database")
    return url


def web_url(url: SecretStr) -> SecretStr:
    """Return a URL of a web server."""
    try:
        parts = urlsplit(url.get_secret_value())
        _ = parts.port
    except ValueError:
        raise ExplainedError(_NO_WEB_URL) from None  # the error quotes the URL
    plain = url.get_secret_value().isprintable() and " " not in url.get_secret_value()
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
        raise ExplainedError(_NO_WEB_URL)
    return url


def signing_secret(secret: SecretStr) -> SecretStr:
    """Return a secret of Standard Webhooks: base64 after ``whsec_``, or any other text."""
    text = secret.get_secret_value()
    if text.startswith("whsec_"):
        try:
            key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
        except binascii.Error:
            key = b""
        if not key:
            raise ExplainedError("must have base64 after whsec_; without it, any text will do")
    return secret


def file_to_write(path: str) -> str:
    """Return the path of a file that the textfile collector reads."""
    if not path.startswith("/") or not path.endswith(".prom") or not path.isprintable():
        raise ValueError("must be an absolute path that ends in .prom, such as /metrics/shop.prom")
    return path


def endpoint(url: str) -> str:
    """Return the URL of an S3 endpoint, without a trailing slash."""
    parts = _web_address(url)
    if parts.username or parts.password:
        raise ValueError(
            "must not contain credentials: put them into S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY"
        )
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("must not contain anything after the host and the port")
    return url.rstrip("/")


def _web_address(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("is malformed") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must start with https:// (or http://) and a host")
    return parts


def bucket(name: str) -> str:
    """Return the name of a bucket."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}", name):
        raise ValueError("may only contain letters, digits, '.', '-' and '_'")
    return name


def prefix(prefix: str) -> str:
    """Return a key prefix without slashes around it."""
    prefix = prefix.strip("/")
    segments = prefix.split("/")
    if not prefix.isprintable() or any(part in ("", ".", "..") for part in segments):
        raise ValueError("must not have empty parts, '.', '..' or control characters")
    if len(prefix.encode()) > 512:  # noqa: PLR2004 - half of what S3 allows for a key
        raise ValueError("must be at most 512 bytes long")
    return prefix


def storage_url(url: str) -> str:
    """Return the URL of a store."""
    store_url.parse(url)
    return url


def service_url(url: str) -> str:
    """Return the URL of a service, without a trailing slash."""
    parts = _web_address(url)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("must not contain credentials, '?' or '#'")
    return url.rstrip("/")


def emulator(url: str) -> str:
    """Return the URL of an emulator; as Google's libraries do, take a host and a port for one."""
    return service_url(url if "://" in url else f"http://{url}")


def ca_file(path: str) -> str:
    """Return the path of a file with certificates of authorities."""
    try:
        found = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        found.load_verify_locations(cafile=path)
    except ssl.SSLError:
        raise ValueError(f"names {path}, which has no certificates in PEM format") from None
    except OSError as error:
        raise ValueError(f"names {path}, which cannot be read: {error.strerror}") from None
    return path


def object_tags(text: str) -> str:
    """Return tags for stored objects."""
    tags.parse(text)
    return text


def encryption_key(key: SecretStr) -> SecretStr:
    """Return a passphrase that openssl reads in the same way."""
    # From a file, openssl reads a passphrase up to the first end of line.
    if not key.get_secret_value().isprintable():
        raise ValueError("must be one line of printable characters")
    return key


def encryption_keys(keys: SecretStr) -> SecretStr:
    """Return passphrases, one on each line, without empty lines."""
    found = [line for line in keys.get_secret_value().splitlines() if line]
    if not all(line.isprintable() for line in found):
        raise ValueError("must be lines of printable characters")
    return SecretStr("\n".join(found))


def recipients(text: str) -> str:
    """Return public keys and keys of KMS, one on each line."""
    from pgstash.pipeline import recipients as lists  # noqa: PLC0415 - not every command needs it

    try:
        return "\n".join(lists.parse(text))
    except lists.UnusableError as error:
        raise ExplainedError(str(error)) from None


def identity(text: SecretStr) -> SecretStr:
    """Return secret keys, or the content of the file that is named instead."""
    content = text.get_secret_value().strip()
    named = ""
    if content.startswith(_PATHS):
        named = f"names {content}, which "
        try:
            with Path(content).expanduser().open("rb") as file:
                stored = file.read(_LONGEST_IDENTITY + 1)
            content = stored.decode()
        except RuntimeError:
            raise ExplainedError(f"{named}cannot be read: this user has no home folder") from None
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ExplainedError(f"{named}cannot be read: {reason}") from None
        if len(stored) > _LONGEST_IDENTITY:
            raise ExplainedError(f"{named}is too large for a secret")
    from pgstash.pipeline import age  # noqa: PLC0415 - not every command needs it

    try:
        age.identities(content)
    except age.UnusableError as error:
        raise ExplainedError(f"{named}{error}") from None
    return SecretStr(content)


def cron(expression: str) -> str:
    """Return a cron expression."""
    schedule.Cron(expression)
    return expression


def blackout(windows: str) -> str:
    """Return windows of the day."""
    blackouts.parse(windows)
    return windows


def command(line: str) -> str:
    """Return a command line whose program is found and executable."""
    program = hooks.words(line)[0]
    if shutil.which(program) is None:
        # The part after an "=" may be a secret: the command line may start with VARIABLE=value.
        shown = program.partition("=")[0]
        one_word = " (quoted as one word)" if " " in program else ""
        raise ValueError(f"names {shown}{one_word}, which is not on PATH or not executable")
    return line


def interval(text: object) -> object:
    """Return a number of seconds, or ``after-backup``."""
    if text == "after-backup" or text is None:
        return text
    if (
        not isinstance(text, str | int)
        or not str(text).isdecimal()
        or int(text) < _SHORTEST_INTERVAL
    ):
        raise ValueError("is neither")
    return int(text)


def statements(text: str) -> str:
    """Return the SQL, or the content of the file that is named instead."""
    if not (text.startswith(("/", "./")) or text.endswith(".sql")):
        return text
    try:
        found = Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"names {text}, which cannot be read: {reason}") from None
    if not found.strip():
        raise ValueError(f"names {text}, which is empty")
    return found


def patterns(text: str) -> str:
    """Return a list of patterns of pg_dump."""
    pg_dump_options.split_list(text)
    return text


def required_tables(text: str) -> str:
    """Return a list of tables, each with ``:nonempty`` or without."""
    required.parse(text)
    return text


def extra_options(text: str) -> str:
    """Return options of pg_dump that keep the dump complete and its format unchanged."""
    pg_dump_options.allowed(text)
    return text
