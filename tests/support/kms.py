"""AWS KMS on loopback, with its real protocol: JSON 1.1 over HTTP, with the operations of pgstash.

Keys are AES-256-GCM with the encryption context as additional data, so that a ciphertext opens with
the same context only. Signatures are not verified, but each request must name an access key.
https://docs.aws.amazon.com/kms/latest/APIReference/API_Encrypt.html
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from support.proxy import HOST, TICK

if TYPE_CHECKING:
    from collections.abc import Mapping

ACCOUNT = "123456789012"
REGION = "eu-central-1"
_PLACE = f"arn:aws:kms:{REGION}:{ACCOUNT}"
KEY = f"{_PLACE}:key/11111111-2222-3333-4444-555555555555"
OTHER = f"{_PLACE}:key/99999999-8888-7777-6666-555555555555"
FAR = f"arn:aws:kms:us-west-2:{ACCOUNT}:key/mrk-0123456789abcdef0123456789abcdef"
ALIAS = f"{_PLACE}:alias/backups"
IDENTITY = {
    "AWS_ACCESS_KEY_ID": "planted-access-key-of-kms",
    "AWS_SECRET_ACCESS_KEY": "planted-secret-key-of-kms",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_NONCE = 12
_CREDENTIAL = re.compile(r"AWS4-HMAC-SHA256 Credential=([^/]+)/\d{8}/([a-z0-9-]+)/kms/aws4_request")


@dataclass(frozen=True)
class Refusal:
    """What KMS answers instead: a status and a code, to some requests or to all."""

    status: int
    code: str
    operation: str | None = None
    arn: str | None = None


@dataclass
class Kms:
    """Serves some keys, and an alias of the first one."""

    arns: tuple[str, ...] = (KEY, OTHER, FAR)
    aliases: dict[str, str] = field(default_factory=lambda: {ALIAS: KEY})
    refusals: list[Refusal] = field(default_factory=list)
    """The first one that fits a request is the answer."""
    once: bool = False
    """Whether a refusal is used up by one request."""
    answers: dict[str, Any] = field(default_factory=dict)
    """What a successful answer has instead of its own values."""
    asked: list[tuple[str, str, Mapping[str, str]]] = field(default_factory=list)
    """Operation, key and context of each request that was served."""
    signed: list[tuple[str, str]] = field(default_factory=list)
    """The access key and the region of each request."""

    def __enter__(self) -> Self:
        service = self

        class Handler(_Handler):
            def __init__(self, *args: object) -> None:
                self.service = service
                super().__init__(*args)  # type: ignore[arg-type] # as in proxy.py

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(TICK,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def reset(self) -> None:
        """Forget what a test changed and asked."""
        self.arns, self.aliases = (KEY, OTHER, FAR), {ALIAS: KEY}
        self.refusals, self.once, self.answers = [], False, {}
        self.asked, self.signed = [], []

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self._server.server_port}"

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a process that reaches it."""
        return {**IDENTITY, "AWS_ENDPOINT_URL_KMS": self.endpoint}

    def answer(self, operation: str, values: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return the status and the document that answer a request."""
        blob = base64.b64decode(values.get("CiphertextBlob", ""))
        used, _, sealed = blob.partition(b"\0")  # as in KMS, a ciphertext names its key
        named = values.get("KeyId", used.decode(errors="replace"))
        for refusal in self.refusals:
            if refusal.operation in (None, operation) and refusal.arn in (None, named):
                if self.once:
                    self.refusals.remove(refusal)
                return refusal.status, _error(refusal.code)
        key = self.aliases.get(named, named)
        if key not in self.arns:
            return 400, _error("NotFoundException")
        context = values.get("EncryptionContext", {})
        self.asked.append((operation, named, context))
        bound = json.dumps(context, sort_keys=True).encode()
        cipher = AESGCM(hashlib.sha256(key.encode()).digest())
        answer: dict[str, Any] = {"KeyId": key, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}
        if operation == "Encrypt":
            nonce = os.urandom(_NONCE)
            sealed = nonce + cipher.encrypt(nonce, base64.b64decode(values["Plaintext"]), bound)
            blob = key.encode() + b"\0" + sealed
            answer["CiphertextBlob"] = base64.b64encode(blob).decode()
        elif operation == "Decrypt":
            if sealed and used.decode() != key:
                return 400, _error("IncorrectKeyException")
            try:
                plain = cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], bound)
            except (InvalidTag, ValueError):
                return 400, _error("InvalidCiphertextException")
            answer["Plaintext"] = base64.b64encode(plain).decode()
        else:
            return 400, _error("UnknownOperationException")
        return 200, answer | self.answers


def _error(code: str) -> dict[str, str]:
    return {"__type": code, "message": f"planted {code}"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    service: Kms

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        operation = self.headers["X-Amz-Target"].removeprefix("TrentService.")
        signed = _CREDENTIAL.match(self.headers.get("Authorization", ""))
        if signed is None:
            status, document = 400, _error("MissingAuthenticationTokenException")
        else:
            self.service.signed.append((signed[1], signed[2]))
            status, document = self.service.answer(operation, json.loads(body))
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
