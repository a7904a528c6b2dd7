"""What S3-compatible stores answer otherwise than AWS, as changes of a real answer.

Each entry names the store, the request, what its answer becomes, and the source of the fact.
A document in the place of a body is what that store was seen to send, or what its code writes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from support.proxy import ANY, Reply, Rewrite

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.proxy import HttpProxy, Rule


@dataclass(frozen=True, slots=True)
class Deviation:
    """One store's answer to ``operation``; ``source`` says where that is written."""

    store: str
    what: str
    operation: str
    change: Callable[[Reply], Reply]
    source: str

    def __str__(self) -> str:
        return f"{self.store}: {self.what}"

    def play(self, http: HttpProxy, *, times: int = 1_000_000) -> Rule:
        """Have the proxy answer like this store, so often."""
        return http.rule(self.operation, Rewrite(self.change), times=times)


def page(status: int, body: bytes, kind: str = "text/html") -> Callable[[Reply], Reply]:
    """Answer with a status and a body."""
    return lambda _reply: Reply(status, [("Content-Type", kind)], body)


def error(status: int, inside: str) -> Callable[[Reply], Reply]:
    """Answer with a status, and an Error element with this inside it."""
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error>{inside}</Error>'
    return page(status, body.encode(), "application/xml")


def edited(pattern: bytes, by: bytes) -> Callable[[Reply], Reply]:
    """Change the body of the real answer."""
    return lambda reply: replace(reply, body=re.sub(pattern, by, reply.body, flags=re.DOTALL))


def deleted(*errors: str) -> Callable[[Reply], Reply]:
    """Answer a batch of deletions with these errors, one for each key."""
    inside = "".join(f"<Error><Key>a/1</Key>{each}</Error>" for each in errors)
    body = f'<?xml version="1.0" encoding="UTF-8"?><DeleteResult>{inside}</DeleteResult>'
    return page(200, body.encode(), "application/xml")


def renamed(rename: Callable[[str], str]) -> Callable[[Reply], Reply]:
    """Write the names of all headers in another way."""
    return lambda reply: replace(
        reply, headers=[(rename(name), value) for name, value in reply.headers]
    )


EMPTY_MESSAGE = edited(rb"<Message>.*</Message>", b"<Message></Message>")
NO_MESSAGE = edited(rb"<Message>.*</Message>", b"")
NOTHING_BESIDE_THE_CODE = edited(rb"<Error>.*(<Code>.*</Code>).*</Error>", rb"<Error>\1</Error>")
XHTML = b"<html><head><title>Console</title></head><body><p>Log in</p></body></html>"
HTML = b"<!DOCTYPE html><html><head><meta charset=utf-8></head><body>Bad gateway<br></body></html>"

RGW_MESSAGE = "https://github.com/ceph/ceph/pull/51052 (Message is written also when it is empty)"
RGW_NO_MESSAGE = "https://github.com/minio/minio-go/issues/563 (an answer without a Message)"
GATEWAY = "https://www.rfc-editor.org/rfc/rfc9110#section-15.6.3 (any proxy, load balancer or CDN)"

# A real refusal of Swift, in the words of another store; the tests make the mistake.
REWORDED = [
    Deviation("Ceph RGW", "an empty Message", ANY, EMPTY_MESSAGE, RGW_MESSAGE),
    Deviation("Ceph RGW", "no Message", ANY, NO_MESSAGE, RGW_NO_MESSAGE),
    Deviation(
        "Ceph RGW",
        "nothing but the Code",
        ANY,
        NOTHING_BESIDE_THE_CODE,
        "https://github.com/s3gw-tech/s3gw/issues/689 (no RequestId)",
    ),
]

# Refusals: the answer, and a word of the message or the hint that says what to do.
REFUSED = [
    (
        Deviation(
            "R2",
            "401 for an unknown key",
            "ListObjectsV2",
            error(401, "<Code>Unauthorized</Code><Message>Unauthorized</Message>"),
            "https://developers.cloudflare.com/r2/api/error-codes/ (10002)",
        ),
        "S3_ACCESS_KEY_ID",
    ),
    (
        Deviation(
            "Garage",
            "another region",
            "ListObjectsV2",
            error(
                400,
                "<Code>AuthorizationHeaderMalformed</Code><Message>Authorization header malformed, "
                "unexpected scope: 20251215/us-east-1/s3/aws4_request</Message>"
                "<Region>garage</Region>",
            ),
            "https://github.com/bauer-group/IP-HomeassistantS3CompatibleBackup/issues/1",
        ),
        "S3_REGION",
    ),
    (
        Deviation(
            "Ceph RGW",
            "an unknown 403 without Message",
            "ListObjectsV2",
            error(403, "<Code>UserSuspended</Code><Message></Message>"),
            "https://docs.redhat.com/en/documentation/red_hat_ceph_storage/6/html/developer_guide/"
            "s3-common-response-status-codes_dev",
        ),
        "denies access",
    ),
    (
        Deviation(
            "Ceph RGW",
            "a bad request with an empty Message",
            "ListObjectsV2",
            error(400, "<Code>InvalidRequest</Code><Message></Message>"),
            RGW_MESSAGE,
        ),
        "InvalidRequest",
    ),
    (Deviation("any", "403 without a body", "ListObjectsV2", page(403, b""), GATEWAY), "denies"),
    (Deviation("any", "403 in HTML", "ListObjectsV2", page(403, XHTML), GATEWAY), "denies"),
    (Deviation("any", "404 in HTML", "ListObjectsV2", page(404, XHTML), GATEWAY), "S3 store"),
    (Deviation("any", "200 in HTML", "ListObjectsV2", page(200, XHTML), GATEWAY), "S3 store"),
    (
        Deviation(
            "any",
            "a time that is none",
            "ListObjectsV2",
            edited(rb"<LastModified>.*?</LastModified>", b"<LastModified>then</LastModified>"),
            "no store is known for it: an answer that botocore cannot parse",
        ),
        "S3 store",
    ),
]

# The same request again succeeds.
PASSING = [
    Deviation(
        "Ceph RGW",
        "503 with an empty Message",
        "UploadPart",
        error(503, "<Code>SlowDown</Code><Message></Message>"),
        RGW_MESSAGE,
    ),
    Deviation("Ceph RGW", "503 with nothing in it", "PutObject", error(503, ""), RGW_NO_MESSAGE),
    Deviation(
        "B2",
        "no tomes available",
        "UploadPart",
        error(503, "<Code>ServiceUnavailable</Code><Message>no tomes available</Message>"),
        "https://github.com/mastodon/mastodon/issues/30030",
    ),
    Deviation(
        "B2",
        "an internal error",
        "UploadPart",
        error(500, "<Code>InternalError</Code><Message>An internal error occurred.</Message>"),
        "https://www.backblaze.com/blog/b2-503-500-server-error/",
    ),
    Deviation(
        "GCS",
        "429 SlowDown",
        "PutObject",
        error(
            429, "<Code>SlowDown</Code><Message>Reduce it.</Message><Details>Too quick</Details>"
        ),
        "https://github.com/nextcloud/server/issues/12537",
    ),
    Deviation(
        "R2",
        "429",
        "CompleteMultipartUpload",
        error(429, "<Code>TooManyRequests</Code><Message>Reduce your rate.</Message>"),
        "https://developers.cloudflare.com/r2/api/error-codes/ (10058)",
    ),
    *(
        Deviation("any", f"a bare 429 to {operation}", operation, page(429, b""), GATEWAY)
        for operation in ("UploadPart", "ListParts", "CompleteMultipartUpload", "HeadObject")
    ),
    *(
        Deviation("any", f"a bare {status}", "UploadPart", page(status, b""), GATEWAY)
        for status in (408, 425, 499, 500, 502, 503, 504)
    ),
    Deviation("any", "502 in HTML", "UploadPart", page(502, HTML), GATEWAY),
    Deviation("any", "503 in XHTML", "PutObject", page(503, XHTML), GATEWAY),
    Deviation(
        "MinIO",
        "not yet up",
        "ListParts",
        error(503, "<Code>XMinioServerNotInitialized</Code><Message>Try again.</Message>"),
        "https://github.com/minio/minio/pull/9563",
    ),
    Deviation(
        "MinIO",
        "too slow to write",
        "UploadPart",
        error(503, "<Code>SlowDownWrite</Code><Message>Reduce your rate.</Message>"),
        "https://github.com/minio/minio/issues/14547",
    ),
    *(
        Deviation(
            store,
            f"200 with {what}",
            "CompleteMultipartUpload",
            change,
            source,
        )
        for store, what, change, source in (
            (
                "AWS",
                "InternalError in the body",
                error(200, "<Code>InternalError</Code><Message>Try again.</Message>"),
                "https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html",
            ),
            (
                "MinIO",
                "white space before the error",
                lambda _reply: Reply(
                    200, [], b"     \n<Error><Code>InternalError</Code><Message/></Error>"
                ),
                "https://github.com/minio/minio/pull/7198",
            ),
            (
                "any",
                "a body that is cut off",
                lambda reply: replace(reply, body=reply.body[:40]),
                "https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html",
            ),
        )
    ),
    Deviation(
        "Ceph RGW",
        "500 for an upload that is completed",
        "CompleteMultipartUpload",
        error(500, "<Code>UnknownError</Code><Message></Message>"),
        "https://github.com/ceph/s3-tests/pull/728",
    ),
]

# An upload that was aborted.
GONE = [
    Deviation(
        "Ceph RGW",
        "NoSuchKey",
        "ListParts",
        error(404, "<Code>NoSuchKey</Code><Message></Message><BucketName>b</BucketName>"),
        "ceph/ceph, src/rgw/rgw_op.cc, RGWListMultipart::execute: ENOENT is passed on",
    ),
    Deviation("any", "404 without a code", "ListParts", error(404, "<Message/>"), RGW_NO_MESSAGE),
    Deviation("any", "404 without a body", "ListParts", page(404, b""), GATEWAY),
    Deviation(
        "SeaweedFS",
        "a list of no parts",
        "ListParts",
        page(
            200,
            b"<ListPartsResult><IsTruncated>false</IsTruncated></ListPartsResult>",
            "application/xml",
        ),
        "https://github.com/seaweedfs/seaweedfs/issues/5024",
    ),
]

# The name of metadata among them.
HEADERS = [
    Deviation(
        "SeaweedFS and others",
        f"headers in {what}",
        ANY,
        renamed(rename),
        "https://www.rfc-editor.org/rfc/rfc9110#section-5.1 (names of fields have no case)",
    )
    for what, rename in (
        ("upper case", str.upper),
        ("lower case", str.lower),
        ("Title-Case", str.title),
    )
]

NO_BATCHES = [
    Deviation(
        "GCS",
        "no DeleteObjects",
        "DeleteObjects",
        error(
            400,
            "<Code>NotImplemented</Code><Message>A header or query you provided requested a "
            "function that is not implemented.</Message>",
        ),
        "https://github.com/minio/mc/issues/4778, https://github.com/supabase/storage/issues/898",
    ),
    Deviation(
        "GCS",
        "DeleteObjects taken for another request",
        "DeleteObjects",
        error(
            400,
            "<Code>InvalidArgument</Code><Message>Invalid argument.</Message><Details>Cannot "
            "create buckets using a POST.</Details>",
        ),
        "https://github.com/minio/mc/issues/2398",
    ),
    Deviation("any", "a bare 501", "DeleteObjects", page(501, b""), GATEWAY),
]

# Answers to a batch in which one key failed: whether it is no error, passes, or is refused.
BATCHES = [
    (
        Deviation(
            "Ceph RGW",
            "a number for a code, of what is gone",
            "DeleteObjects",
            deleted("<Code>404</Code>"),
            "https://github.com/ceph/ceph/pull/28737",
        ),
        "fine",
    ),
    (
        Deviation(
            "VersityGW",
            "NoSuchKey",
            "DeleteObjects",
            deleted("<Code>NoSuchKey</Code><Message/>"),
            "https://github.com/versity/versitygw/issues/195",
        ),
        "fine",
    ),
    (
        Deviation(
            "Ceph RGW",
            "a number for a code, of a refusal",
            "DeleteObjects",
            deleted("<Code>403</Code><Message></Message>"),
            "https://github.com/ceph/ceph/pull/28737",
        ),
        "denies access",
    ),
    (
        Deviation(
            "Ceph RGW",
            "an empty Message",
            "DeleteObjects",
            deleted("<Code>AccessDenied</Code><Message></Message>"),
            "https://github.com/ceph/ceph/pull/59984",
        ),
        "denies access",
    ),
    (
        Deviation(
            "MinIO",
            "one key is busy",
            "DeleteObjects",
            deleted("<Code>SlowDownWrite</Code><Message>Reduce your rate.</Message>"),
            "https://github.com/minio/minio/issues/14547",
        ),
        "again",
    ),
    (
        Deviation(
            "Riak CS",
            "one key is not served",
            "DeleteObjects",
            deleted("<Code>ServiceUnavailable</Code><Message>Reduce your rate.</Message>"),
            "https://github.com/basho/riak_cs/pull/899",
        ),
        "again",
    ),
    (
        Deviation(
            "AWS",
            "200 with an error in the place of the result",
            "DeleteObjects",
            error(200, "<Code>InternalError</Code><Message>Try again.</Message>"),
            "https://repost.aws/knowledge-center/s3-resolve-200-internalerror",
        ),
        "again",
    ),
]

# Answers of stores that do not take `If-None-Match: *` when an upload is completed: a status and a
# code, given before anything is done. Others ignore it.
WITHOUT_CONDITION = {
    "B2: 501": (501, "NotImplemented"),
    # https://github.com/sathinduga/obsidian-s3-sync-and-backup/issues/78
    "GCS: 400": (400, "NotImplemented"),  # https://github.com/supabase/storage/issues/898
    "any: InvalidArgument": (400, "InvalidArgument"),  # https://github.com/minio/mc/issues/2398
}
