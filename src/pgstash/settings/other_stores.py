"""Settings of stores other than S3: who makes the requests, and where they go."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, SecretStr

from pgstash.settings import validators
from pgstash.settings.declaration import Group, setting

_AZURE = "Azure Blob Storage"
_GOOGLE = "Google Cloud Storage"


class OtherStoreSettings(Group):
    """The stores of ``STORAGE_URL``."""

    azure_storage_connection_string: SecretStr | None = setting(
        _AZURE,
        "a connection string of a storage account",
        "Account, key and endpoint in one value. If it is set, the settings below are ignored.",
        default=None,
    )
    azure_storage_key: SecretStr | None = setting(
        _AZURE,
        "an access key of the storage account",
        "The key that signs requests. Without a connection string, a key or a SAS token, the "
        "managed or workload identity of the machine or the pod makes the requests.",
        default=None,
    )
    azure_storage_sas_token: SecretStr | None = setting(
        _AZURE,
        "a SAS token",
        "A token that permits requests for a time. Ignored if `AZURE_STORAGE_KEY` is set.",
        default=None,
    )
    azure_storage_endpoint: Annotated[str, AfterValidator(validators.service_url)] | None = setting(
        _AZURE,
        "the URL of a blob service, such as https://account.blob.core.usgovcloudapi.net",
        "The blob service of the account, if it is not in Azure's public cloud.",
        default=None,
    )
    storage_emulator_host: Annotated[str, AfterValidator(validators.emulator)] | None = setting(
        _GOOGLE,
        "the URL of a server, such as http://127.0.0.1:4443",
        "An emulator to use in place of Google Cloud Storage, without credentials (development).",
        default=None,
    )
