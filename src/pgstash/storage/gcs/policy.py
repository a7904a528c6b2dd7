"""The permissions that an identity of Google Cloud needs for each role, as a custom role.

https://cloud.google.com/storage/docs/access-control/iam-permissions
https://cloud.google.com/iam/docs/creating-custom-roles
"""

from __future__ import annotations

from typing import Any

from pgstash.storage.host_roles import TASKS, Role

_PERMISSIONS = {
    "writer": ("create", "list"),
    "pruner": ("delete", "get", "list"),
    "reader": ("create", "get", "list"),
}


def policy(role: Role, bucket: str) -> dict[str, Any]:
    """Return a role that may do what a host of this role does, as ``gcloud iam roles`` reads it.

    It is granted on the bucket. Without ``storage.objects.delete``, nothing can be replaced.
    """
    return {
        "title": f"pgstash {role}",
        "description": f"Lets a host with pgstash {TASKS[role]} in {bucket}.",
        "stage": "GA",
        "includedPermissions": [f"storage.objects.{each}" for each in _PERMISSIONS[role]],
    }
