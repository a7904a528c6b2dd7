"""Removes secrets from text: every line of output passes through here."""

from __future__ import annotations

import functools
import itertools
import json
import re
import threading
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

from pgstash.monitoring import phrases

MASK = "***"

# A shorter secret may be an everyday word (a password "postgres"). It is removed if it is a whole
# word, but not from the middle of other words, nor from constant text of pgstash's own messages.
_DISTINCT_LENGTH = 12

_MOST_LEARNT = 64

_MOST_WORDS_COMPARED = 1000  # in one text, against the phrases of pgstash

_KNOWN = (
    # Credentials in a URI: scheme://user:password@host
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,30}://[^\s:/]*):\S{1,1024}@"), rf"\1:{MASK}@"),
    # This has to come before the pattern that would take "token: Bearer …" for a token "Bearer"
    (re.compile(r"(?i)\b(Bearer)\s+[A-Za-z0-9+/=._~-]{8,}"), rf"\1 {MASK}"),
    # Base64, but not a word as in "Basic authentication failed"
    (
        re.compile(r"\b((?i:Basic))\s+(?=[A-Za-z]*(?:[0-9+/=]|[a-z][A-Z]))[A-Za-z0-9+/]{8,}={0,2}"),
        rf"\1 {MASK}",
    ),
    # password=…, quoted or not, as in connection strings, query strings and JSON. Two plain words
    # after a colon are a message: column "token": value too long
    (
        re.compile(
            r"(?i)((?:password|passwd|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key"
            r"|encryption[_-]?key|sslpassword|credential)[\w-]{0,40}"
            r"[\"']?\s*(?:=|:(?! [a-z]+ [a-z']+(?![\w'=:])))\s*)"
            r"(?:\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[^\s&,;\"'])++"
        ),
        rf"\1{MASK}",
    ),
    # What a statement sets a password to, and PostgreSQL's hashes of passwords, even if cut short
    (re.compile(r"(?i)\b(PASSWORD\s++E?)'(?:[^'\\]|\\.|'')*+'?"), rf"\1'{MASK}'"),
    (re.compile(r"SCRAM-SHA-256\$[\w+/=:$.-]*+"), MASK),
    (re.compile(r"\bmd5[0-9a-f]{8,}"), MASK),
    # The signature of a presigned URL, and the header of a signed request
    (re.compile(r"(?i)(X-Amz-(?:Signature|Credential|Security-Token)=)[^\s&]+"), rf"\1{MASK}"),
    (re.compile(r"(?i)(Authorization[\"']?\s*[:=]\s*)[^\r\n]+"), rf"\1{MASK}"),
    # The passphrase of one backup, and secret keys of age
    (re.compile(r"\bpgstash-key-[0-9a-f]{16,}"), MASK),
    # The same in Base64, as requests to KMS and its responses have it
    (re.compile(r"\bcGdzdGFzaC1rZXkt[A-Za-z0-9+/]{16,}={0,2}"), MASK),
    (re.compile(r"(?i)\bAGE-SECRET-KEY-[\w-]{8,}"), MASK),
    # Access keys of AWS
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), MASK),
)


class _Learnt:
    """The secrets that the process was given while it ran, such as session tokens.

    The patterns are made when text has to be scrubbed: hundreds of servers give theirs one by one.
    """

    def __init__(self) -> None:
        self._secrets: dict[str, list[str]] = {}
        self._lock = threading.Lock()
        self._patterns: tuple[re.Pattern[str] | None, re.Pattern[str] | None] | None = None

    def add(self, secrets: Iterable[str], origin: str) -> None:
        given = list(dict.fromkeys(secrets))
        with self._lock:
            known = self._secrets.get(origin, [])
            others = [secret for secret in known if secret not in given]
            self._secrets[origin] = [*others, *given][-_MOST_LEARNT:]
            if not set(given) <= set(known):
                self._patterns = None

    @property
    def all(self) -> re.Pattern[str] | None:
        """What finds any of them; None if there are none."""
        return self._made()[0]

    @property
    def distinct(self) -> re.Pattern[str] | None:
        """What finds those that cannot be everyday words; None if there are none."""
        return self._made()[1]

    def _made(self) -> tuple[re.Pattern[str] | None, re.Pattern[str] | None]:
        with self._lock:
            if self._patterns is None:
                every = itertools.chain(*self._secrets.values())
                forms = {form for secret in every for form in _forms(secret)}
                distinct = _any_of(form for form in forms if len(form) >= _DISTINCT_LENGTH)
                self._patterns = _any_of(forms), distinct
            return self._patterns


_learnt = _Learnt()


def learn(secrets: Iterable[str], origin: str = "") -> None:
    """Make every scrubber of this process remove these secrets, too.

    Only the newest of each ``origin`` are kept: credentials that are renewed each hour would become
    ever more. Passwords that are renewed at each login must not push those out.
    """
    _learnt.add(secrets, origin)


class Scrubber:
    """Recognises the configured secrets, those that were learnt, and others by their form."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        """Prepare patterns for all forms in which text may contain the secrets."""
        forms = {form for secret in secrets if secret for form in _forms(secret)}
        self._secrets = _any_of(forms)
        self._words = _any_of(form for form in forms if len(form) < _DISTINCT_LENGTH)
        self._distinct = _any_of(form for form in forms if len(form) >= _DISTINCT_LENGTH)

    def knows(self, text: str) -> bool:
        """Return whether the text contains one of the given secrets."""
        return any(known.search(text) for known in (self._secrets, _learnt.all) if known)

    def scrub(self, text: str) -> str:
        """Return the text without secrets."""
        if _learnt.all:
            text = _learnt.all.sub(MASK, text)
        kept = self._own_words(text)
        if not (kept and self._secrets):
            return _without(self._secrets, text)

        def replaced(match: re.Match[str]) -> str:
            # A longer secret may start with such a word.
            is_word = len(match[0]) < _DISTINCT_LENGTH
            return match[0] if is_word and match.start() in kept else MASK

        return _without_known(self._secrets.sub(replaced, text))

    def scrub_distinct(self, text: str) -> str:
        """Return the text without the secrets that cannot be everyday words."""
        if _learnt.distinct:
            text = _learnt.distinct.sub(MASK, text)
        return _without(self._distinct, text)

    def _own_words(self, text: str) -> set[int]:
        """Return the positions of secrets that are everyday words in pgstash's own phrases."""
        if not self._words:
            return set()
        found = [match.start() for match in self._words.finditer(text)]
        if not found or len(found) > _MOST_WORDS_COMPARED:
            return set()
        return {at for at in found if any(phrase.is_at(text, at) for phrase in self._phrases)}

    @functools.cached_property
    def _phrases(self) -> list[phrases.Phrase]:
        return phrases.holding(self._words) if self._words else []


def _any_of(forms: Iterable[str]) -> re.Pattern[str] | None:
    longest_first = sorted(forms, key=len, reverse=True)
    return re.compile("|".join(map(_pattern, longest_first))) if longest_first else None


def _without(secrets: re.Pattern[str] | None, text: str) -> str:
    return _without_known(secrets.sub(MASK, text) if secrets else text)


def _without_known(text: str) -> str:
    for pattern, replacement in _KNOWN:
        text = pattern.sub(replacement, text)
    return text


def _forms(secret: str) -> set[str]:
    """Return the secret as it is, URL-encoded, and escaped as in reprs and JSON."""
    return {
        secret,
        quote(secret, errors="surrogateescape"),
        quote(secret, safe="", errors="surrogateescape"),
        quote_plus(secret, errors="surrogateescape"),
        repr(secret)[1:-1],
        repr('"' + secret)[
            2:-1
        ],  # inside a longer text, whose quotes decide which quotes are escaped
        repr(secret.encode(errors="surrogateescape"))[2:-1],
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
    }


def _pattern(form: str) -> str:
    escaped = re.escape(form)
    if len(form) >= _DISTINCT_LENGTH:
        return escaped
    return rf"(?<![\w-]){escaped}(?![\w-])"
