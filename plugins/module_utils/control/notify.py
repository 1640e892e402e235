# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Notifications: Nova's ``instance.create.end`` and friends as CloudEvents 1.0 in JSON, to a file or an address."""

from __future__ import annotations

import functools
import http.client
import json
import os
import urllib.request
import uuid
from pathlib import Path
from typing import Any, Callable, Iterable, Sequence

from ansible_collections.barestack.kvm.plugins.module_utils.model.effects import Effects
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import BarestackError
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Instance


def cloud_event(kind: str, instance: Instance, time: str) -> dict[str, Any]:
    """``kind`` is Nova's event type: ``instance.create.end``, ``instance.create.error``, ``instance.delete.end``."""
    return {
        "specversion": "1.0",
        "id": str(uuid.uuid4()),
        "source": "/barestack/kvm",
        "type": f"barestack.kvm.{kind}",
        "subject": instance.uuid,
        "time": time,
        "datacontenttype": "application/json",
        "data": {
            "uuid": instance.uuid,
            "display_name": instance.name,
            "tenant_id": instance.project_id,
            "user_id": instance.user_id,
            "host": instance.host,
            "state": instance.vm_state,
            "power_state": instance.power_state,
            "flavor": instance.flavor.name,
            "image_uuid": instance.image.id,
            "ip_addresses": [ip.ip_address for port in instance.ports for ip in port.fixed_ips],
            "launched_at": instance.launched_at,
            "fault": str(instance.fault) if instance.fault else None,
        },
    }


def send(
    effects: Effects, events: Sequence[dict[str, Any]], targets: Iterable[tuple[str, Callable[..., None]]]
) -> list[str]:
    """Send the events to each target, a path or address with its sender. Returns what went wrong."""
    warnings = []
    for target, sender in targets:
        try:
            if target and events:
                act = functools.partial(sender, events, target)
                effects.apply("notification.send", target, act, after=f"{len(events)} events\n")
        except BarestackError as error:
            warnings.append(str(error))
    return warnings


def append(events: Sequence[dict[str, Any]], path: str) -> None:
    """Append the events to a file, a line each, in one write."""
    lines = "".join(json.dumps(event, sort_keys=True) + "\n" for event in events)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, lines.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise BarestackError(f"notification_file: {path} did not take the notification: {error}") from error


def post(events: Sequence[dict[str, Any]], url: str) -> None:
    """POST the events as a batch to an http or https address."""
    if not url.startswith(("http://", "https://")):
        raise BarestackError(f"notification_url: {url!r} is not an http or https address")
    try:
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked
            url, json.dumps(events).encode(), {"Content-Type": "application/cloudevents-batch+json"}
        )
        urllib.request.urlopen(request, timeout=10).close()  # noqa: S310
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise BarestackError(f"notification_url: {url} did not take the notification: {error}") from error
