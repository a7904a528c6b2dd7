"""Identities and recipients of age for tests, and what Debian's own ``age`` does with them."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyrage

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Person:
    """Somebody with a secret key of age."""

    identity: str
    recipient: str

    def file(self, folder: Path, name: str = "identity.txt") -> Path:
        """Write the identity as age-keygen does."""
        path = folder / name
        path.write_text(f"# public key: {self.recipient}\n{self.identity}\n")
        path.chmod(0o600)
        return path


# Always the same, because the names of tests hold them: all workers must find the same tests.
_IDENTITIES = {
    "ann": "AGE-SECRET-KEY-12Z0Q4CYP04A43ZTMADLQ07XFMPA7R4KN6NSGMZEQHZX9JT07Y90Q77E0TY",
    "ben": "AGE-SECRET-KEY-16QS7U60C3LCSMH2XZ4QKHWQAYF5XC4VK6LVZ4ADZ0VJ2THZL490SWE0FT6",
    "eve": "AGE-SECRET-KEY-1A3R5VYPGDCNUVT7K9VZ2PPGAMV63FLAWT4LXX8ED20Q54RDFFSRSLLWV6M",
}


def person(name: str) -> Person:
    """Return the person of this name."""
    identity = pyrage.x25519.Identity.from_str(_IDENTITIES[name])
    return Person(str(identity), str(identity.to_public()))


def ssh_person(folder: Path, kind: str = "ed25519", passphrase: str = "") -> Person:
    """Return a person with an SSH key of this kind, made by ssh-keygen."""
    path = folder / f"id_{kind}"
    command = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "me@host", "-f", str(path)]
    subprocess.run(command, check=True)
    return Person(path.read_text(), path.with_suffix(".pub").read_text().strip())


def opened_by_age(path: Path, identity: Path) -> str:
    """Decrypt a file by ``age -d``."""
    done = subprocess.run(
        ["age", "-d", "-i", identity, path], capture_output=True, text=True, check=True
    )
    return done.stdout
