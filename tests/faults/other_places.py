"""Containers of Azure and buckets of Google: as places of backups, and what breaks on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from faults.scene import Place, without_records
from support import azurite, gcs_server
from support.proxy import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from azure.storage.blob import ContainerClient

    from support.gcs_server import GcsServer
    from support.proxy import HttpProxy, Request


@dataclass(frozen=True)
class Container:
    """A container of Azure, always looked at without any proxy."""

    client: ContainerClient
    settings: dict[str, str]

    def objects(self) -> dict[str, bytes]:
        names = without_records(each.name for each in self.client.list_blobs())
        return {name: self.client.download_blob(name).readall() for name in names}

    def metadata(self, key: str) -> dict[str, str]:
        found = self.client.get_blob_client(key).get_blob_properties().metadata
        return dict(found)

    def unfinished(self) -> list[str]:
        committed = {each.name for each in self.client.list_blobs()}
        everything = self.client.list_blobs(include=["uncommittedblobs"])
        return [each.name for each in everything if each.name not in committed]

    def put(self, key: str, data: bytes, metadata: dict[str, str] | None = None) -> None:
        self.client.upload_blob(key, data, metadata=metadata, overwrite=True).close()

    def remove(self, key: str) -> None:
        self.client.delete_blob(key)


@dataclass(frozen=True)
class GoogleBucket:
    """A bucket of the tests' own server for Google Cloud Storage."""

    server: GcsServer
    name: str
    settings: dict[str, str]

    def objects(self) -> dict[str, bytes]:
        with self.server.lock:
            there = self.server.objects(self.name)
            return {key: there[key].data for key in without_records(there)}

    def metadata(self, key: str) -> dict[str, str]:
        return self.server.objects(self.name)[key].metadata

    def unfinished(self) -> list[str]:
        with self.server.lock:
            sessions = self.server.sessions.items()
            return [key for key, each in sessions if each.bucket == self.name and not each.done]

    def put(self, key: str, data: bytes, metadata: dict[str, str] | None = None) -> None:
        number = next(self.server.generations)
        stored = gcs_server.Stored(key, data, metadata or {}, number)
        self.server.store(self.name, stored, None)

    def remove(self, key: str) -> None:
        with self.server.lock:
            del self.server.objects(self.name)[key]


class OtherPlace(Place, Protocol):
    """A place whose objects a test changes as someone else would."""

    def put(self, key: str, data: bytes, metadata: dict[str, str] | None = None) -> None:
        """Store an object, in place of one of that name."""

    def remove(self, key: str) -> None:
        """Delete an object."""


@dataclass(frozen=True)
class Kind:
    """What a store calls the requests of a backup, and how it refuses one."""

    operation_of: Callable[[Request], str]
    begin: str
    part: str
    companion: str
    compare: str | None
    """The request for the parts that the store has, if there is one."""
    look: str
    """The request for what has the name of the archive."""
    commit: str
    listing: str
    reading: str
    busy: Answer
    broken: Answer
    denied: Answer
    denies: str
    """The words for the denial in the message."""
    endpoint: str
    """The setting that the message names if the store does not answer."""
    through: Callable[[HttpProxy], Mapping[str, str]]
    """The settings that lead through a proxy."""

    @property
    def requests(self) -> list[str]:
        """Each request of a backup, in the order of time."""
        named = (self.listing, self.begin, self.part, self.companion, self.compare, self.look)
        return list(dict.fromkeys(each for each in (*named, self.commit) if each))


@dataclass(frozen=True)
class OtherStore:
    """A place for backups, with a proxy in front of it."""

    kind: Kind
    place: OtherPlace
    http: HttpProxy


def azure() -> Kind:
    """Return what Azure Blob Storage is like."""
    return Kind(
        operation_of=azurite.operation_of,
        begin="PutBlock",
        part="PutBlock",
        companion="PutBlob",
        compare="GetBlockList",
        look="HeadBlob",
        commit="PutBlockList",
        listing="GetBlobs",
        reading="GetBlob",
        busy=Answer(503, "ServerBusy"),
        broken=Answer(500, "InternalError"),
        denied=Answer(403, "AuthorizationPermissionMismatch"),
        denies="lacks a permission",
        endpoint="AZURE_STORAGE_ENDPOINT",
        through=lambda http: {
            "AZURE_STORAGE_ENDPOINT": azurite.AzuriteServer.endpoint_at(
                int(http.endpoint.rpartition(":")[2])
            )
        },
    )


def google() -> Kind:
    """Return what Google Cloud Storage is like."""
    return Kind(
        operation_of=gcs_server.operation_of,
        begin="Begin",
        part="Part",
        companion="Put",
        compare=None,
        look="Head",
        commit="Commit",
        listing="List",
        reading="Read",
        busy=Answer(429, ""),
        broken=Answer(500, ""),
        denied=Answer(403, ""),
        denies="denies access",
        endpoint="STORAGE_EMULATOR_HOST",
        through=lambda http: {"STORAGE_EMULATOR_HOST": http.endpoint},
    )
