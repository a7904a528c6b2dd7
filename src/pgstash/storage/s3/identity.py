"""The credentials that requests are signed with: where they come from, and how they are renewed.

botocore searches for them and renews them some minutes before they expire. Here its failures get
messages, and credentials that the store refuses as expired are fetched again.
https://docs.aws.amazon.com/sdkref/latest/guide/standardized-credentials.html
"""

from __future__ import annotations

import functools
import os
import socket
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import botocore.session
from botocore.config import Config
from botocore.credentials import (
    AssumeRoleCredentialFetcher,
    CredentialProvider,
    Credentials,
    DeferredRefreshableCredentials,
    ReadOnlyCredentials,
    RefreshableCredentials,
    create_credential_resolver,
)
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import Loader
from botocore.parsers import ResponseParserError
from botocore.utils import METADATA_BASE_URL

from pgstash.storage.s3.config import Signer
from pgstash.storage.s3.identity_errors import NoCredentials, translated

# Seconds that the metadata service of a machine has to accept a connection. It is on the same host.
METADATA_SECONDS = 0.5
SESSION_NAME = "pgstash"
STATIC = "static"
_METADATA = "iam-role"
_SHOWN = 4
_LONG = 16

# For each method of botocore, where the credentials come from.
_SOURCES = {
    STATIC: "S3_ACCESS_KEY_ID",
    "env": "AWS_ACCESS_KEY_ID in the environment",
    "shared-credentials-file": "the AWS credentials file",
    "config-file": "the AWS config file",
    "assume-role": "a role of the AWS profile",
    "assume-role-with-web-identity": "a web identity (AWS_WEB_IDENTITY_TOKEN_FILE)",
    "sso": "AWS IAM Identity Center",
    "login": "aws login",
    "custom-process": "credential_process of the AWS profile",
    "container-role": "the credential service of the container (ECS, EKS Pod Identity)",
    _METADATA: "the instance profile of this machine",
}

# Anything may be wrong with files of the user and with the responses of local services, and
# botocore lets most of the resulting errors through.
_FAILURES = (
    *(BotoCoreError, ClientError, ResponseParserError, NoCredentials),
    *(OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RuntimeError),
)


class Identity:
    """The credentials for one bucket, or for KMS. Threads share them, and each renewal."""

    def __init__(self, config: Signer) -> None:
        """Prepare; nothing is read or requested before the first signature."""
        self._config = config
        self._lock = threading.Lock()
        self._source: Credentials | None = None
        self._frozen: ReadOnlyCredentials | None = None
        self._origin = ""  # the method of botocore that found the credentials, or STATIC
        self.changes = 0
        """How many sets of credentials have been used."""

    @property
    def is_static(self) -> bool:
        """Whether requests are signed with the access key of the settings."""
        return self._config.access_key_id is not None and self._config.role_arn is None

    def load_credentials(self) -> Credentials:
        """Return what botocore signs with: the credentials of the moment of each signature."""
        return _Current(self)

    def current(self) -> ReadOnlyCredentials:
        """Return the credentials to sign with now.

        If they cannot be renewed, the last ones are used until the store refuses them. Raises
        ConfigurationError, StorageUnreachableError, StorageRefusedError.
        """
        source = self._source
        if source is None:
            with self._lock:
                if self._source is None:
                    self._fetch()
                source = self._source
        try:
            frozen = source.get_frozen_credentials() if source else None
        except _FAILURES:
            frozen = self._frozen
        if frozen is None:
            raise AssertionError("the first credentials are fetched, or the failure is raised")
        if frozen != self._frozen:
            with self._lock:
                self._take(frozen)
        return frozen

    def renew(self, refused_at: int) -> bool:
        """Fetch credentials again, as the store refused those in use at that count of changes.

        Return whether there are others now: another thread may have fetched them. Raises what
        :meth:`current` raises.
        """
        if self.is_static:
            return False
        with self._lock:
            if self.changes == refused_at:
                self._fetch()
            return self.changes != refused_at

    def describe(self) -> str:
        """Return the access key, shortened, and its source. Raises what :meth:`current` raises."""
        self.current()
        return self.known

    @property
    def known(self) -> str:
        """The same as far as it is known, without a request."""
        frozen, role = self._frozen, self._config.role_arn
        if frozen is None:
            return "unknown credentials"
        account = f" of account {frozen.account_id}" if frozen.account_id else ""
        key = f"access key {_shortened(frozen.access_key)}{account}"
        source = _SOURCES.get(self._origin, "botocore")
        where = source if self._origin == STATIC else f"{source} [{self._origin}]"
        return f"{key} of {role}, assumed by {where}" if role else f"{key}, from {where}"

    def _fetch(self) -> None:
        """Get credentials from their source anew. Needs the lock; raises as :meth:`current`."""
        try:
            source = self._found()
            self._origin = source.method
            if self._config.role_arn:
                source = self._assumed(source, self._config.role_arn)
            frozen = source.get_frozen_credentials()
        except _FAILURES as exc:
            raise translated(exc, self._config, first=self._frozen is None) from exc
        self._source = source
        self._take(frozen)

    def _take(self, frozen: ReadOnlyCredentials) -> None:
        """Note which credentials are used. Needs the lock."""
        if frozen != self._frozen:
            self._config.learn([each for each in (frozen.secret_key, frozen.token) if each])
            self._frozen = frozen
            self.changes += 1

    def _found(self) -> Credentials:
        key, secret = self._config.access_key_id, self._config.secret_access_key
        if key is not None and secret is not None:
            return Credentials(key, secret, method=STATIC)
        session = self._session()
        resolver = create_credential_resolver(session)
        resolver.providers = [
            _IfItAnswers(each, session) if each.METHOD == _METADATA else each
            for each in resolver.providers
        ]
        found = resolver.load_credentials()
        if found is None:
            raise NoCredentials
        return found

    def _session(self) -> botocore.session.Session:
        """Return a session that reads the environment and ``~/.aws``, unless a key is set."""
        config = self._config
        session = isolated_session() if config.access_key_id else botocore.session.Session()
        if session.get_config_variable("region") is None:
            session.set_config_variable("region", config.region)
        session.set_default_client_config(
            Config(connect_timeout=config.connect_timeout, read_timeout=config.read_timeout)
        )
        return session

    def _assumed(self, source: Credentials, role: str) -> RefreshableCredentials:
        """Return credentials of a role, which are fetched when they are first used.

        https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html
        """
        fetcher = AssumeRoleCredentialFetcher(
            client_creator=self._session().create_client,
            source_credentials=source,
            role_arn=role,
            extra_args={"RoleSessionName": SESSION_NAME},
        )
        return DeferredRefreshableCredentials(fetcher.fetch_credentials, "assume-role")


class _Current(Credentials):
    """Asks for the credentials whenever botocore reads them."""

    method = "pgstash"

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        return self._identity.current()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - attributes of botocore's class
        if name in ReadOnlyCredentials._fields:
            return getattr(self._identity.current(), name)
        raise AttributeError(name)


class _IfItAnswers(CredentialProvider):
    """The metadata service of the machine, if something accepts a connection at its address.

    Otherwise botocore would wait for it for seconds on a machine that has none.
    """

    METHOD = _METADATA
    CANONICAL_NAME = "Ec2InstanceMetadata"

    def __init__(self, provider: Any, session: botocore.session.Session) -> None:  # noqa: ANN401 - a class of botocore
        super().__init__(session)
        self._provider = provider

    def load(self) -> Any:  # noqa: ANN401 - as in the base
        address = self.session.get_config_variable("ec2_metadata_service_endpoint")
        url = urlsplit(address or METADATA_BASE_URL)
        try:
            socket.create_connection((url.hostname or "", url.port or 80), METADATA_SECONDS).close()
        except OSError:
            return None
        return self._provider.load()


class _ServiceDescriptions(Loader):
    """botocore's own descriptions of services, each read once for all clients."""

    def __init__(self) -> None:
        super().__init__(
            extra_search_paths=[self.BUILTIN_DATA_PATH], include_default_search_paths=False
        )

    def list_available_services(self, type_name: str) -> list[str]:
        """Return the names of their folders, four hundred, without reading each folder."""
        del type_name
        return sorted(folder.name for folder in Path(self.BUILTIN_DATA_PATH).iterdir())


_service_descriptions = functools.cache(_ServiceDescriptions)


def isolated_session() -> botocore.session.Session:
    """Return a session that ignores ~/.aws files and all AWS_* variables except AWS_CA_BUNDLE.

    AWS_CA_BUNDLE names the certificates of a private authority, for a self-hosted store.
    """
    unaffected: dict[str, Any] = {
        name: (None, variable if name == "ca_bundle" else None, default, convert)
        for name, (_, variable, default, convert) in (
            botocore.session.Session.SESSION_VARIABLES.items()
        )
    }
    for file in ("config_file", "credentials_file"):
        unaffected[file] = (None, None, os.devnull, None)
    session = botocore.session.Session(session_vars=unaffected)
    session.register_component("data_loader", _service_descriptions())
    return session


def _shortened(key: str | None) -> str:
    """Return enough of an access key ID to recognise it."""
    key = key or ""
    if len(key) < _LONG:
        return f"{key[:2]}…"
    return f"{key[:_SHOWN]}…{key[-_SHOWN:]}"
