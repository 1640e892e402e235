# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What the hosts answered, put together for the audit on the control host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import pack, unpack


def looked_at(hostvars: Mapping[str, Any], hosts: Sequence[str], registered: str) -> str:
    """For each host the contents that it registered under this name, or why it has none; packed."""
    found: dict[str, dict[str, Any]] = {}
    for host in hosts:
        result = hostvars[host].get(registered)
        result = result if isinstance(result, Mapping) else {"msg": "the host was not asked"}
        if "contents" in result:
            found[host] = {"contents": unpack(result["contents"])}
        else:
            found[host] = {"why": str(result.get("msg", "no answer")).strip()}
    return pack(found)


class FilterModule:
    """Ansible's entry."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {"looked_at": looked_at}
