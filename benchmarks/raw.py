# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The same servers without us: overlays by qemu-img, domains by raw libvirt calls, two threads. The yardstick.

    raw.py up|down DIRECTORY

DIRECTORY holds what ``run.py`` saved of the servers that barestack.kvm booted: for each one ``<uuid>.xml`` (its
domain), ``<uuid>.iso`` (its config drive) and in ``overlays.json`` its disks (path, backing file, its format, size in
bytes). Prints nothing; its wall time is measured from outside, start of Python and imports included, as ours is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import libvirt


def up(connection: libvirt.virConnect, directory: Path, uuid: str) -> None:
    for disk in json.loads((directory / "overlays.json").read_text())[uuid]:
        os.makedirs(os.path.dirname(disk["path"]), exist_ok=True)
        if disk["iso"]:
            shutil.copyfile(directory / f"{uuid}.iso", disk["path"])
            continue
        backing = ["-b", disk["backing"], "-F", disk["format"]] if disk["backing"] else []
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", *backing, disk["path"], str(disk["size"])], check=True
        )
    connection.defineXML((directory / f"{uuid}.xml").read_text()).createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)


def down(connection: libvirt.virConnect, directory: Path, uuid: str) -> None:
    domain = connection.lookupByUUIDString(uuid)
    domain.destroy()
    domain.undefine()
    paths = [disk["path"] for disk in json.loads((directory / "overlays.json").read_text())[uuid]]
    for path in paths:
        os.unlink(path)
    log = ElementTree.fromstring((directory / f"{uuid}.xml").read_text()).find(".//serial/log")
    os.unlink(str(log.get("file")))  # type: ignore[union-attr]
    for parent in {os.path.dirname(path) for path in paths}:
        if os.path.basename(parent) == uuid:
            os.rmdir(parent)


def main() -> None:
    act = {"up": up, "down": down}[sys.argv[1]]
    directory = Path(sys.argv[2])
    connection = libvirt.open("qemu:///system")
    uuids = sorted(path.stem for path in directory.glob("*.xml"))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda uuid: act(connection, directory, uuid), uuids))
    if act is up:  # only now, as ours: a guest that boots takes the CPU from those that are still to start
        for uuid in uuids:
            connection.lookupByUUIDString(uuid).resume()


if __name__ == "__main__":
    main()
