# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What there is on one host of the harness's site, asked of the system itself: run there by the harness, as text.

Standard input: JSON with ``paths`` (the site's own directories), ``names`` (servers begin so), ``cidr`` (its network's
first octets) and ``ids`` (of networks, ports, servers, volumes that the records ever had). Standard output: a JSON
list of lines. Nothing of the code under test is used.
"""

import glob
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

NOVA = "{http://openstack.org/xmlns/libvirt/nova/1.1}"


def sh(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


def domains(wanted):
    for uuid in sh("virsh", "-q", "-c", "qemu:///system", "list", "--all", "--uuid").split():
        text = sh("virsh", "-c", "qemu:///system", "dumpxml", uuid)
        if not text.strip():
            continue  # gone since
        domain = ElementTree.fromstring(text)
        name = domain.findtext(".//" + NOVA + "name") or ""
        files = [source.get("file") or "" for source in domain.findall(".//disk/source")]
        if name.startswith(wanted["names"]) or any(file.startswith(tuple(wanted["paths"])) for file in files):
            state = sh("virsh", "-c", "qemu:///system", "domstate", uuid).strip()
            taps = [target.get("dev") or "" for target in domain.findall(".//interface/target")]
            yield f"domain {uuid} {name} {state} taps {len(taps)} disks {len(files)}"
            for file in files:
                yield f"disk {file} of {name} {'there' if os.path.exists(file) else 'MISSING'}"
            for tap in taps:
                yield f"interface {tap} of {name}"


def network(wanted):
    short = {identity[:11] for identity in wanted["ids"]}
    links = json.loads(sh("ip", "-j", "link") or "[]")
    bridges = set()
    for link in links:
        name, master = link["ifname"], link.get("master", "")
        if name[3:] in short:
            bridges.update([name] if name.startswith("brq") else [])
            yield f"link {name} master {master or 'none'}"
    for link in links:
        if link.get("master") in bridges and link["ifname"][3:] not in short:
            yield f"link {link['ifname']} master {link['master']} (of no port that the records ever had)"
    for line in sh("ip", "-o", "address").splitlines():
        if wanted["cidr"] in line:
            yield f"address {line.split()[3]} on {line.split()[1]}"
    for line in sh("ip", "netns", "list").splitlines():
        name = line.split()[0]
        if any(name.endswith(identity) for identity in wanted["ids"]):
            yield f"namespace {name}"
            for address in sh("ip", "-n", name, "-o", "-4", "address").splitlines():
                if wanted["cidr"] in address:
                    yield f"address {address.split()[3]} in {name}"


def processes(wanted):
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path) as stream:
                command = stream.read().split("\0")
            held = [os.readlink(link) for link in glob.glob(os.path.dirname(path) + "/fd/*")]
        except OSError:
            continue
        name = os.path.basename(command[0])
        if name == "dnsmasq" and any(argument.find(root) >= 0 for argument in command for root in wanted["paths"]):
            yield "process dnsmasq"
        elif name.startswith(("python", "qemu-img", "ansible", "sh")) and int(path.split("/")[2]) != os.getpid():
            for file in held:
                if file.startswith(tuple(wanted["paths"])):
                    yield f"process {name} holds {file}"


def rules(wanted):
    marks = {identity[:11] for identity in wanted["ids"]} | {wanted["cidr"]}
    chain, elements = "", False
    for line in sh("nft", "list", "ruleset").splitlines():
        line = line.strip()
        if line.startswith(("chain", "set", "map", "table")):
            chain = line.rstrip(" {")
        elements = elements or line.startswith("elements = {")
        # A set's elements are in no order.
        for part in line.replace("elements = {", "").split(",") if elements else [line]:
            if any(mark in part for mark in marks):
                yield f"rule {chain}: {part.strip(' {}')}"
        elements = elements and not line.endswith("}")


def files(wanted):
    for root in wanted["paths"]:
        for directory, _, names in os.walk(root):
            for name in names:
                path = os.path.join(directory, name)
                if not name.endswith(".lock"):
                    yield f"file {path}"
            if directory != root:
                yield f"directory {directory}"


def look(wanted):
    lines = []
    for part in (domains, network, processes, rules, files):
        lines += part(wanted)
    return sorted(lines)


if __name__ == "__main__":
    json.dump(look(json.load(sys.stdin)), sys.stdout)
