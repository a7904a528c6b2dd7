"""The boundary to KMS: requests that are signed, retried, and whose errors are translated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from pgstash import events
from pgstash.errors import PgstashError
from pgstash.format import kms
from pgstash.format.kms import Wrap
from pgstash.kms import errors
from pgstash.kms.config import KmsConfig
from pgstash.kms.errors import Asked
from pgstash.storage.retry import Retry
from pgstash.storage.s3.errors import Answer, is_expired
from pgstash.storage.s3.identity import Identity, isolated_session

T = TypeVar("T")

# How often one request is signed again with new credentials, after KMS refused the last ones.
RENEWALS = 2
_UNKNOWN_TOKEN = "UnrecognizedClientException"  # noqa: S105 - an error code


class KmsClient:
    """KMS in any region, asked by one identity; see :class:`pgstash.kms.wrapping.Kms`."""

    def __init__(self, config: KmsConfig, emit: events.Emit) -> None:
        """Prepare; nothing is read or requested before the first request."""
        self._config = config
        self._identity = Identity(config.signer)
        self._retry = Retry(config.retry_attempts, config.retry_delay, emit)
        self._clients: dict[str, Any] = {}

    def encrypt(self, arn: str, plain: bytes, context: Mapping[str, str]) -> Wrap:
        """Encrypt with a key; https://docs.aws.amazon.com/kms/latest/APIReference/API_Encrypt.html.

        Raises EncryptionError.
        """
        asked = Asked("Encrypt", arn)

        def request(client: Any) -> Wrap:  # noqa: ANN401 - botocore makes its class at run time
            found = client.encrypt(KeyId=arn, Plaintext=plain, EncryptionContext=dict(context))
            return Wrap(arn, str(found["KeyId"]), bytes(found["CiphertextBlob"]))

        made = self._call(asked, request)
        expected = made.key == arn or (kms.is_alias(arn) and _same_place(made.key, arn))
        if not expected or kms.is_alias(made.key):
            raise errors.of_another_key(asked, made.key)
        if not made.ciphertext or plain in made.ciphertext:
            raise errors.unreadable(asked)
        return made

    def decrypt(self, wrap: Wrap, context: Mapping[str, str]) -> bytes:
        """Decrypt with a key; https://docs.aws.amazon.com/kms/latest/APIReference/API_Decrypt.html.

        Raises CorruptedError if the key or the context is another, EncryptionError.
        """
        asked = Asked("Decrypt", wrap.key)

        def request(client: Any) -> tuple[str, bytes]:  # noqa: ANN401 - as above
            found = client.decrypt(
                KeyId=wrap.key, CiphertextBlob=wrap.ciphertext, EncryptionContext=dict(context)
            )
            return str(found["KeyId"]), bytes(found["Plaintext"])

        used, plain = self._call(asked, request)
        if used != wrap.key:
            raise errors.of_another_key(asked, used)
        return plain

    def _call(self, asked: Asked, request: Callable[[Any], T]) -> T:
        """Return the result of a request. Raises EncryptionError, CorruptedError."""

        def once() -> T:
            renewals = 0
            while True:
                known = self._identity.changes or 1  # the request fetches the first credentials
                try:
                    return request(self._client(kms.region_of(asked.arn)))
                except ClientError as exc:
                    answer = Answer.of(exc)
                    old = is_expired(exc) or answer.code == _UNKNOWN_TOKEN
                    if renewals < RENEWALS and old and self._identity.renew(known):
                        renewals += 1
                        continue
                    raise errors.answered(answer, asked, self._identity.known) from exc
                except (BotoCoreError, ResponseParserError) as exc:
                    raise errors.unanswered(exc, asked) from exc
                except (KeyError, TypeError, ValueError) as exc:
                    raise errors.unreadable(asked) from exc

        try:
            return self._retry(asked.doing, once)
        except PgstashError as error:
            found = errors.final(error, asked)
            if found is error:
                raise
            raise found from error

    def _client(self, region: str) -> Any:  # noqa: ANN401 - botocore makes its class at run time
        if region not in self._clients:
            signer = self._config.signer
            own = signer.access_key_id is not None
            session = isolated_session() if own else botocore.session.Session()
            session.register_component("credential_provider", self._identity)
            config = Config(
                connect_timeout=signer.connect_timeout,
                read_timeout=signer.read_timeout,
                retries={"total_max_attempts": 1, "mode": "standard"},
            )
            self._clients[region] = session.create_client("kms", region_name=region, config=config)
        return self._clients[region]


def _same_place(key: str, arn: str) -> bool:
    """Return whether a key is in the region and the account of an alias."""
    return kms.is_arn(key) and key.split(":")[:5] == arn.split(":")[:5]
