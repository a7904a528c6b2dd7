"""How objects are stored and reached: class, encryption, tags, address, certificates, proxy."""

from __future__ import annotations

import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pgstash.errors import StorageRefusedError, StorageUnreachableError
from pgstash.storage.s3.config import Connection, Objects
from support.deviations import edited, error
from support.proxy import Answer, HttpProxy, Reply, Rewrite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pgstash.storage.s3.storage import S3Storage
    from support.swift import SwiftServer

ENCRYPTED = Objects(
    storage_class="STANDARD_IA",
    encryption="aws:kms",
    kms_key_id="alias/backups",
    tags=(("team", "data & more"), ("cost", "4+2=6")),
)
COMPANION = {
    "x-amz-server-side-encryption": "aws:kms",
    "x-amz-server-side-encryption-aws-kms-key-id": "alias/backups",
    "x-amz-tagging": "team=data%20%26%20more&cost=4%2B2%3D6",
}
NOT_IMPLEMENTED = Answer(501, "NotImplemented")


@pytest.fixture
def http(swift_server: SwiftServer) -> Iterator[HttpProxy]:
    with HttpProxy(swift_server.port) as proxy:
        yield proxy


def upload(storage: S3Storage) -> None:
    with storage.upload("archive", metadata={"id": "1"}, expected_size=1) as begun:
        begun.write(b"data")
        begun.flush()
        begun.commit()


def sent(http: HttpProxy, operation: str) -> dict[str, str]:
    """Return the headers of the only request of this kind that say how an object is kept."""
    [request] = [each for each in http.requests if each.operation == operation]
    headers = {name.lower(): value for name, value in request.headers.items()}
    kept = ("x-amz-acl", "x-amz-grant", "x-amz-server", "x-amz-storage", "x-amz-tagging")
    return {name: value for name, value in headers.items() if name.startswith(kept)}


def test_only_archives_have_the_storage_class(
    s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    http.rule("PutObject", NOT_IMPLEMENTED)
    http.rule("CreateMultipartUpload", NOT_IMPLEMENTED)
    storage = s3(endpoint=http.endpoint, objects=ENCRYPTED)
    with pytest.raises(StorageRefusedError, match="NotImplemented") as caught:
        storage.put("companion", b"data", {})
    assert caught.value.hint == "Unset S3_SSE and S3_TAGS if the store does not support them."
    with pytest.raises(StorageRefusedError, match="NotImplemented"):
        upload(storage)
    assert sent(http, "PutObject") == COMPANION
    assert sent(http, "CreateMultipartUpload") == COMPANION | {"x-amz-storage-class": "STANDARD_IA"}


def test_nothing_is_asked_for_that_is_not_set(
    s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    storage = s3(endpoint=http.endpoint)
    storage.put("companion", b"data", {})
    upload(storage)
    assert sent(http, "PutObject") == sent(http, "CreateMultipartUpload") == {}


def test_a_class_that_the_store_has_and_one_that_it_lacks(
    s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    storage = s3(endpoint=http.endpoint, objects=Objects(storage_class="STANDARD"))
    upload(storage)
    assert storage.head("archive").size == 4
    storage = s3(endpoint=http.endpoint, objects=Objects(storage_class="COLD"))
    with pytest.raises(StorageRefusedError, match="does not know the storage class") as caught:
        upload(storage)
    assert caught.value.hint == "Check S3_STORAGE_CLASS."


def with_headers(*headers: tuple[str, str]) -> Rewrite:
    def change(reply: Reply) -> Reply:
        return Reply(reply.status, [*reply.headers, *headers], reply.body)

    return Rewrite(change)


@pytest.mark.parametrize(
    ("headers", "archived"),
    [
        ([("x-amz-storage-class", "GLACIER")], "GLACIER"),
        ([("x-amz-storage-class", "DEEP_ARCHIVE")], "DEEP_ARCHIVE"),
        (
            [("x-amz-storage-class", "GLACIER"), ("x-amz-restore", 'ongoing-request="true"')],
            "GLACIER",
        ),
        (
            [
                ("x-amz-storage-class", "GLACIER"),
                ("x-amz-restore", 'ongoing-request="false", expiry-date="Fri, 21 Dec 2029 00:00"'),
            ],
            "",
        ),
        ([("x-amz-storage-class", "GLACIER_IR")], ""),
        ([("x-amz-storage-class", "INTELLIGENT_TIERING")], ""),
        (
            [
                ("x-amz-storage-class", "INTELLIGENT_TIERING"),
                ("x-amz-archive-status", "DEEP_ARCHIVE_ACCESS"),
            ],
            "INTELLIGENT_TIERING",
        ),
        ([], ""),
    ],
)
def test_an_object_that_has_to_be_thawed(
    s3: Callable[..., S3Storage],
    http: HttpProxy,
    headers: list[tuple[str, str]],
    archived: str,
) -> None:
    storage = s3(endpoint=http.endpoint)
    storage.put("a b", b"data", {})
    http.rule("HeadObject", with_headers(*headers))
    assert storage.head("a b").archived == archived


def test_an_archived_object_in_a_listing_and_when_it_is_read(
    s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    """The answers of https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html."""
    storage = s3(endpoint=http.endpoint)
    storage.put("a b", b"data", {})
    http.rule(
        "ListObjectsV2",
        Rewrite(
            edited(
                rb"<StorageClass>STANDARD</StorageClass>", b"<StorageClass>GLACIER</StorageClass>"
            )
        ),
    )
    http.rule("GetObject", Rewrite(error(403, "<Code>InvalidObjectState</Code><Message/>")))
    [listed] = storage.list("")
    assert listed.archived == "GLACIER"
    expected = r"cannot read s3://.+/a b yet: it is archived"
    with pytest.raises(StorageRefusedError, match=expected) as caught, storage.read("a b"):
        pass
    bucket = storage.url().removeprefix("s3://").rstrip("/")
    command = f"aws s3api restore-object --bucket {bucket} --key 'a b' --restore-request Days=7"
    assert caught.value.hint.endswith(command)


@pytest.mark.parametrize(
    ("endpoint", "addressing", "url"),
    [
        ("http://store.example:1", "auto", "http://store.example:1/{bucket}/key?"),
        ("http://store.example:1", "path", "http://store.example:1/{bucket}/key?"),
        ("http://store.example:1", "virtual", "http://{bucket}.store.example:1/key?"),
        ("https://s3.a-1.amazonaws.com", "auto", "https://{bucket}.s3.a-1.amazonaws.com/key?"),
        ("https://s3.a-1.amazonaws.com", "path", "https://s3.a-1.amazonaws.com/{bucket}/key?"),
    ],
)
def test_where_the_bucket_is_named(
    s3: Callable[..., S3Storage], endpoint: str, addressing: str, url: str
) -> None:
    storage = s3(
        endpoint=endpoint,
        connection=Connection(addressing=addressing),  # type: ignore[arg-type] # any text
    )
    bucket = storage.url().removeprefix("s3://").rstrip("/")
    client = storage._client  # noqa: SLF001 - it sends nothing
    made = client.generate_presigned_url("get_object", {"Bucket": bucket, "Key": "key"})
    assert made.startswith(url.format(bucket=bucket))


def test_a_private_authority(s3: Callable[..., S3Storage], http: HttpProxy, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "store")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, secret = tmp_path / "ca.pem", tmp_path / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, secret)
    http._server.socket = context.wrap_socket(http._server.socket, server_side=True)  # noqa: SLF001 - no other way
    endpoint = http.endpoint.replace("http:", "https:")
    with pytest.raises(StorageRefusedError, match="is not trusted") as caught:
        s3(endpoint=endpoint).check()
    assert "S3_CA_FILE" in caught.value.hint
    s3(endpoint=endpoint, connection=Connection(ca_file=str(certificate))).check()


def test_a_proxy_is_used_unless_it_is_turned_off(
    s3: Callable[..., S3Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with pytest.raises(StorageUnreachableError, match="no connection to the proxy") as caught:
        s3(retry_attempts=0, connection=Connection()).check()
    assert caught.value.hint.endswith("or set S3_USE_PROXY=false.")
    s3(retry_attempts=0, connection=Connection(proxy=False)).check()
