# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The same servers without us: overlays by qemu-img, domains by raw libvirt calls, two threads. The yardstick.

    raw.py save|bridges|up|start|resume|ordered|down DIRECTORY

``save`` puts into DIRECTORY what the others need of the servers named bench-* that barestack.kvm booted on this host:
for each one ``<uuid>.xml`` (its domain), ``<uuid>.iso`` (its config drive) and in ``overlays.json`` its disks (path,
backing file, its format, size in bytes). ``bridges`` makes the domains' bridges; ``up`` makes the disks, defines and
starts; ``down`` removes all again. ``start`` starts with stopped CPUs, for ``resume`` later: barestack.kvm's order, in
which no guest that boots takes the CPU from those that are still to start; ``ordered`` is both. Prints nothing; the
wall time is measured from outside, start of Python and imports included, as ours is.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import libvirt


def save(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    overlays: dict[str, list[dict[str, object]]] = {}
    connection = libvirt.open("qemu:///system")
    for domain in connection.listAllDomains():
        try:
            uuid, xml = domain.UUIDString(), domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        except libvirt.libvirtError:
            continue  # somebody else's, gone since it was listed
        if "<nova:name>bench" in xml:
            (directory / f"{uuid}.xml").write_text(xml)
            overlays[uuid] = [_disk(directory, uuid, disk) for disk in ElementTree.fromstring(xml).iter("disk")]
    (directory / "overlays.json").write_text(json.dumps(overlays))


def _disk(directory: Path, uuid: str, disk: ElementTree.Element) -> dict[str, object]:
    path = disk.find("source").get("file")  # type: ignore[union-attr]
    if disk.get("device") == "cdrom":
        shutil.copyfile(str(path), directory / f"{uuid}.iso")
        return {"path": path, "iso": True}
    info = json.loads(subprocess.check_output(["qemu-img", "info", "-U", "--output=json", str(path)]))
    return {
        "path": path,
        "iso": False,
        "size": info["virtual-size"],
        "backing": info.get("backing-filename"),
        "format": info.get("backing-filename-format"),
    }


def bridges(directory: Path) -> list[str]:
    sources = (item for path in directory.glob("*.xml") for item in ElementTree.parse(path).iter("source"))
    return sorted({str(item.get("bridge")) for item in sources if item.get("bridge")})


def make_bridges(directory: Path) -> None:
    for bridge in bridges(directory):
        subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], check=True)
        subprocess.run(["ip", "link", "set", bridge, "up"], check=True)


def define(connection: libvirt.virConnect, directory: Path, uuid: str) -> libvirt.virDomain:
    for disk in json.loads((directory / "overlays.json").read_text())[uuid]:
        os.makedirs(os.path.dirname(disk["path"]), exist_ok=True)
        if disk["iso"]:
            shutil.copyfile(directory / f"{uuid}.iso", disk["path"])
            continue
        backing = ["-b", disk["backing"], "-F", disk["format"]] if disk["backing"] else []
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", *backing, disk["path"], str(disk["size"])], check=True
        )
    return connection.defineXML((directory / f"{uuid}.xml").read_text())


def up(connection: libvirt.virConnect, directory: Path, uuid: str) -> None:
    define(connection, directory, uuid).create()


def start(connection: libvirt.virConnect, directory: Path, uuid: str) -> None:
    define(connection, directory, uuid).createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)


def resume(connection: libvirt.virConnect, _directory: Path, uuid: str) -> None:
    connection.lookupByUUIDString(uuid).resume()


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


ACTS = {"up": [up], "start": [start], "resume": [resume], "ordered": [start, resume], "down": [down]}


def main() -> None:
    directory = Path(sys.argv[2])
    if sys.argv[1] in ("save", "bridges"):
        {"save": save, "bridges": make_bridges}[sys.argv[1]](directory)
        return
    connection = libvirt.open("qemu:///system")
    uuids = sorted(path.stem for path in directory.glob("*.xml"))
    with ThreadPoolExecutor(2) as pool:
        for act in ACTS[sys.argv[1]]:
            list(pool.map(functools.partial(act, connection, directory), uuids))
    if sys.argv[1] == "down":
        for bridge in bridges(directory):
            subprocess.run(["ip", "link", "del", bridge], check=True)


if __name__ == "__main__":
    main()
