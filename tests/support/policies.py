"""Proxies before stores that enforce what an identity may do, as AWS, Azure and Google do.

Each maps a request to the actions that the provider documents for it. That for S3 evaluates
``Allow`` statements with wildcards and the condition ``s3:prefix``; those for Azure and Google take
custom roles. What is not allowed is refused with 403.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote
from xml.etree import ElementTree as ET

from support import azurite, gcs_server
from support.proxy import Action, Answer, HttpProxy, Reply, Request, Respond, Rewrite

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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


# https://learn.microsoft.com/rest/api/storageservices/authorize-with-azure-active-directory
BLOBS = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs"
OF_BLOBS = {
    "DeleteBlob": {"delete"},
    "GetBlob": {"read"},
    "GetBlobs": {"read"},
    "GetBlockList": {"read"},
    "HeadBlob": {"read"},
    "PostBatch": {"delete"},  # each request in it
    "PutBlob": {"write", "add/action"},
    "PutBlock": {"write"},
    "PutBlockList": {"write"},
}


@dataclass
class AzureRoleProxy(HttpProxy):
    """Passes on what the data actions of a custom ``role`` allow.

    With ``lists_only``, the assignment has the condition that reading is listing.
    """

    role: Mapping[str, Any] = field(default_factory=dict)
    lists_only: bool = False
    refused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.operation_of = azurite.operation_of

    def action(self, request: Request) -> Action | None:
        planned = super().action(request)
        operation = self.operation_of(request)
        allowed = {each for each in OF_BLOBS[operation] if f"{BLOBS}/{each}" in self._allowed}
        if self.lists_only and operation != "GetBlobs":
            allowed -= {"read"}
        if allowed:
            return planned
        self.refused.append(operation)
        return Answer(403, "AuthorizationPermissionMismatch")

    @property
    def _allowed(self) -> list[str]:
        allowed: list[str] = self.role["DataActions"]
        return allowed


# https://cloud.google.com/storage/docs/access-control/iam-json
OF_GOOGLE = {
    "Begin": "storage.objects.create",
    "Delete": "storage.objects.delete",
    "Head": "storage.objects.get",
    "List": "storage.objects.list",
    "Put": "storage.objects.create",
    "Read": "storage.objects.get",
}


@dataclass
class GoogleRoleProxy(HttpProxy):
    """Passes on what the permissions of a custom ``role`` allow.

    Whoever has the URL of a session of an upload may use it. That an object is replaced is not
    recognised: on Google, it takes the permission to delete as well.
    """

    role: Mapping[str, Any] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.operation_of = gcs_server.operation_of

    def action(self, request: Request) -> Action | None:
        planned = super().action(request)
        needed = OF_GOOGLE.get(self.operation_of(request))
        if needed is None or needed in self.role["includedPermissions"]:
            return planned
        self.refused.append(needed)
        message = f"the caller does not have {needed} access to the object (or it may not exist)"
        error = {"message": message, "domain": "global", "reason": "forbidden"}
        body = {"error": {"code": 403, "message": message, "errors": [error]}}
        headers = [("Content-Type", "application/json; charset=UTF-8")]
        return Respond(Reply(403, headers, json.dumps(body).encode()))
