"""The permissions that an identity of Azure needs for each role, as a custom role.

https://learn.microsoft.com/azure/role-based-access-control/custom-roles
https://learn.microsoft.com/rest/api/storageservices/authorize-with-azure-active-directory
"""

from __future__ import annotations

from typing import Any

from pgstash.storage.host_roles import TASKS, Role

BLOBS = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs"

SUBSCRIPTION = "00000000-0000-0000-0000-000000000000"
"""Stands for the subscription of the account, which pgstash does not know."""

_ACTIONS = {
    # Azure has one action for a listing and for reading. A condition of the assignment permits
    # the listing alone: see docs/how-to/protect-from-deletion.md.
    "writer": ("read", "write"),
    # Blocks that were never committed are dropped by a commit, which writes.
    "pruner": ("read", "write", "delete"),
    "reader": ("read", "add/action"),
}


def policy(role: Role, account: str, container: str) -> dict[str, Any]:
    """Return a role that may do what a host of this role does, as ``az role definition`` reads it.

    It is assigned for one container.
    """
    return {
        "Name": f"pgstash {role} {account}/{container}",
        "IsCustom": True,
        "Description": f"Lets a host with pgstash {TASKS[role]}.",
        "Actions": [],
        "NotActions": [],
        "DataActions": [f"{BLOBS}/{action}" for action in _ACTIONS[role]],
        "NotDataActions": [],
        "AssignableScopes": [f"/subscriptions/{SUBSCRIPTION}"],
    }
