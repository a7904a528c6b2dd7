"""The permissions that a key of S3 needs for each role, as policies of IAM.

https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazons3.html
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pgstash.storage.host_roles import Role

Statement = Mapping[str, Any]

_VERSION = "2012-10-17"  # of the language of policies
_PROOFS = "backup_*.proof_*"
_FAILURES = "backup_*.failure.*"
_STORED = (_PROOFS, _FAILURES)  # by drills


@dataclass(frozen=True, slots=True)
class Place:
    """A prefix in a bucket, and what is stored with the objects.

    ``region`` decides in which partition of AWS the bucket is. ``kms_key`` is the key of KMS that
    encrypts them: its id or alias, or the ARN of either. Objects may have tags (``tagged``)
    and locks (``locked``). ``recipients`` are the ARNs of the keys of KMS that backups are
    encrypted for. With ``versions``, pruning removes the versions of objects. With ``folders``, the
    backups of each database are in a folder below the prefix.
    """

    bucket: str
    prefix: str
    region: str
    kms_key: str | None = None
    tagged: bool = False
    locked: bool = False
    recipients: Sequence[str] = ()
    versions: bool = False
    folders: bool = False

    @property
    def _partition(self) -> str:
        if self.region.startswith("cn-"):
            return "aws-cn"
        return "aws-us-gov" if self.region.startswith("us-gov-") else "aws"

    @property
    def _arn(self) -> str:
        return f"arn:{self._partition}:s3:::{self.bucket}"

    def of_storing(self, *actions: str, names: str = "*") -> Statement:
        """Allow to store objects with these names, and what else ``actions`` name."""
        tagging = ["s3:PutObjectTagging"] if self.tagged else []
        locking = ["s3:PutObjectRetention"] if self.locked else []
        return self.of_objects("s3:PutObject", *tagging, *locking, *actions, names=names)

    def of_key(self, *actions: str) -> list[Statement]:
        """Allow to use the key of KMS that encrypts objects, if there is one.

        A policy cannot name an alias as a resource:
        https://docs.aws.amazon.com/kms/latest/developerguide/alias-authorization.html
        """
        if self.kms_key is None:
            return []
        key, condition = self.kms_key, {}
        if "alias/" in key:
            alias = key[key.index("alias/") :]
            condition = _if_named(alias)
            key = "*"
        if not key.startswith("arn:"):
            key = f"arn:{self._partition}:kms:{self.region}:*:key/{key}"
        allowed = {"Effect": "Allow", "Action": list(actions), "Resource": key}
        return [{**allowed, **condition}]

    def of_recipients(self, action: str) -> Iterator[Statement]:
        """Allow to use each key of KMS that backups are encrypted for."""
        for arn in self.recipients:
            place, _, alias = arn.partition(":alias/")
            resource = f"{place}:key/*" if alias else arn
            condition = _if_named(f"alias/{alias}") if alias else {}
            yield {"Effect": "Allow", "Action": [action], "Resource": resource, **condition}

    def of_bucket(self, *actions: str) -> Statement:
        """Allow requests about the bucket as a whole."""
        return {"Effect": "Allow", "Action": list(actions), "Resource": self._arn}

    def of_listing(self, *actions: str) -> Statement:
        """Allow to list the keys under the prefix."""
        only = {"StringLike": {"s3:prefix": f"{_literal(self.prefix)}/*"}}
        return {**self.of_bucket(*actions), "Condition": only}

    def of_objects(self, *actions: str, names: str = "*") -> Statement:
        """Allow requests about the objects under the prefix with these names."""
        resource = f"{self._arn}/{_literal(self.prefix)}/{names}"
        return {"Effect": "Allow", "Action": list(actions), "Resource": resource}


def _if_named(alias: str) -> dict[str, Any]:
    """Return the condition that a key has this alias."""
    return {"Condition": {"ForAnyValue:StringEquals": {"kms:ResourceAliases": alias}}}


def _literal(text: str) -> str:
    """Escape what policies take for a wildcard or a variable.

    https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_variables.html
    """
    return re.sub(r"[*?$]", lambda found: f"${{{found[0]}}}", text)


def policy(role: Role, place: Place) -> dict[str, Any]:
    """Return what a key of this role needs, and no more."""
    return {"Version": _VERSION, "Statement": _STATEMENTS[role](place)}


def _writer(place: Place) -> list[Statement]:
    return [
        place.of_listing("s3:ListBucket"),
        *([place.of_bucket("s3:GetBucketObjectLockConfiguration")] if place.locked else []),
        place.of_storing("s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"),
        *place.of_recipients("kms:Encrypt"),
        # Completing an upload in parts decrypts them.
        *place.of_key("kms:GenerateDataKey", "kms:Decrypt"),
    ]


# What `pgstash check` compares with the retention.
_RULES = (
    "s3:GetBucketVersioning",
    "s3:GetLifecycleConfiguration",
    "s3:GetBucketObjectLockConfiguration",
)

_OF_VERSIONS = ("s3:GetObjectVersion", "s3:DeleteObjectVersion")


def _pruner(place: Place) -> list[Statement]:
    return [
        place.of_listing("s3:ListBucket", *(["s3:ListBucketVersions"] if place.versions else [])),
        place.of_bucket("s3:ListBucketMultipartUploads", *_RULES),
        # HEAD, for the metadata that name the source of a backup, needs the permission to read.
        place.of_objects("s3:GetObject", "s3:DeleteObject", "s3:AbortMultipartUpload"),
        *([place.of_objects(*_OF_VERSIONS)] if place.versions else []),
        *([place.of_objects("s3:GetObjectRetention")] if place.locked else []),
    ]


def _reader(place: Place) -> list[Statement]:
    return [
        place.of_listing("s3:ListBucket"),
        place.of_objects("s3:GetObject"),
        *(place.of_storing(names=f"*/{each}" if place.folders else each) for each in _STORED),
        *place.of_recipients("kms:Decrypt"),
        *place.of_key("kms:GenerateDataKey", "kms:Decrypt"),
    ]


_STATEMENTS: Mapping[Role, Callable[[Place], list[Statement]]] = {
    "writer": _writer,
    "pruner": _pruner,
    "reader": _reader,
}
