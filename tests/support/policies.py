"""A proxy before an S3 store that enforces a policy of IAM, as AWS does.

It maps each request to the actions that AWS documents for it, and evaluates ``Allow`` statements
with wildcards and the condition ``s3:prefix``. What no statement allows is refused with 403.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote
from xml.etree import ElementTree as ET

from support.proxy import Action, Answer, HttpProxy, Request, Rewrite

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from support.proxy import Reply

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-with-s3-policy-actions.html
OF_BUCKET = {
    "GetBucketLifecycleConfiguration": "s3:GetLifecycleConfiguration",
    "GetBucketVersioning": "s3:GetBucketVersioning",
    "GetObjectLockConfiguration": "s3:GetBucketObjectLockConfiguration",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "ListObjectVersions": "s3:ListBucketVersions",
    "ListObjectsV2": "s3:ListBucket",
}
OF_OBJECT = {
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "CompleteMultipartUpload": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "DeleteObject": "s3:DeleteObject",
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "ListParts": "s3:ListMultipartUploadParts",
    "PutObject": "s3:PutObject",
    "UploadPart": "s3:PutObject",
}
OF_VERSION = {"DeleteObject", "GetObject", "HeadObject"}
RETENTION = "x-amz-object-lock-retain-until-date"


@dataclass(frozen=True, slots=True)
class Wanted:
    """An action on a resource; ``prefix`` is that of a listing, None if there is none."""

    action: str
    resource: str
    prefix: str | None = None


def wanted(request: Request) -> Iterator[Wanted]:
    """Yield what a request needs; all of it must be allowed."""
    bucket, _, key = unquote(request.path).lstrip("/").partition("/")
    arn = f"arn:aws:s3:::{bucket}"
    operation = request.operation
    if operation in OF_BUCKET:
        yield Wanted(OF_BUCKET[operation], arn, request.query.get("prefix", [None])[0])
    elif operation == "DeleteObjects":
        for found in ET.fromstring(request.deletes).iter():  # noqa: S314 - of our client
            if found.tag.endswith("}Object") or found.tag == "Object":
                parts = {part.tag.rpartition("}")[2]: part.text for part in found}
                version = "Version" if "VersionId" in parts else ""
                yield Wanted(f"s3:DeleteObject{version}", f"{arn}/{parts['Key']}")
    else:
        of_version = operation in OF_VERSION and "versionId" in request.query
        version = "Version" if of_version else ""
        yield Wanted(OF_OBJECT[operation] + version, f"{arn}/{key}")
        if RETENTION in {name.lower() for name in request.headers}:
            yield Wanted("s3:PutObjectRetention", f"{arn}/{key}")


def matches(pattern: str, text: str) -> bool:
    """Compare as IAM does: ``*`` and ``?`` are wildcards unless they are written ``${*}``."""
    parts = re.findall(r"\$\{[*?$]\}|.", pattern, re.DOTALL)
    wild = {"*": ".*", "?": "."}
    expression = "".join(
        re.escape(part[2]) if part.startswith("${") else wild.get(part, re.escape(part))
        for part in parts
    )
    return re.fullmatch(expression, text, re.DOTALL) is not None


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def allows(policy: Mapping[str, Any], asked: Wanted) -> bool:
    """Return whether a statement of the policy allows it."""
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        assert statement.keys() <= {"Effect", "Action", "Resource", "Condition"}
        condition = statement.get("Condition", {"StringLike": {}})
        assert condition.keys() == {"StringLike"}
        assert condition["StringLike"].keys() <= {"s3:prefix"}
        prefixes = condition["StringLike"].get("s3:prefix")
        if (
            asked.action in _list(statement["Action"])
            and any(matches(each, asked.resource) for each in _list(statement["Resource"]))
            and (
                prefixes is None
                or any(matches(each, asked.prefix or "") for each in _list(prefixes))
            )
        ):
            return True
    return False


@dataclass
class PolicyProxy(HttpProxy):
    """Passes on what the ``policy`` allows; ``refused`` are the actions that it did not."""

    policy: Mapping[str, Any] = field(default_factory=dict)
    refused: list[Wanted] = field(default_factory=list)

    def action(self, request: Request) -> Action | None:
        planned = super().action(request)
        missing = [each for each in wanted(request) if not allows(self.policy, each)]
        self.refused += missing
        if missing:
            return Answer(403, "AccessDenied", json.dumps([each.action for each in missing]))
        if planned is None and request.operation == "HeadObject":
            key = next(wanted(request))
            if not allows(self.policy, Wanted("s3:GetObjectRetention", key.resource)):
                return Rewrite(_without_retention)
        return planned


def _without_retention(reply: Reply) -> Reply:
    """HEAD shows the retention only to those who may read it."""
    kept = [each for each in reply.headers if not each[0].lower().startswith("x-amz-object-lock")]
    return type(reply)(reply.status, kept, reply.body)
