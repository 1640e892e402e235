# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Our nftables tables, ``barestack`` of bridge, inet and netdev: what the kernel holds, and one way to change it.

What is wanted is written as nft's text. What is loaded is read as nft's JSON. To compare them, the wanted text goes
through the kernel too, in a network namespace that lives as long as the question (some 15 ms): so neither side's
normalisation, which differs between versions of nft, ever looks like a change.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Set, Tuple

from ansible_collections.barestack.kvm.plugins.module_utils.host import system
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import HostError

TABLE = "barestack"

_HEADER: Tuple[str, ...] = ("type", "hook", "prio", "policy")

ChainKey = Tuple[str, str]
"""(family, chain)."""


@dataclass(frozen=True)
class WantedChain:
    """A chain as nft's text: ``header`` is empty, or the hook of a base chain; one rule a line."""

    rules: Tuple[str, ...]
    header: str = ""


@dataclass(frozen=True)
class Rule:
    """A loaded rule: ``text`` is its JSON without what differs between equal rules."""

    text: str
    handle: int
    comment: str = ""


@dataclass
class Chain:
    """A loaded chain."""

    header: Dict[str, Any]
    rules: List[Rule] = field(default_factory=list)

    def same(self, other: Chain) -> bool:
        """Whether both hold the same, wherever they were loaded."""
        return (self.header, self.texts) == (other.header, other.texts)

    @property
    def texts(self) -> List[str]:
        """The rules' JSON, in their order."""
        return [rule.text for rule in self.rules]


@dataclass
class Ruleset:
    """What our tables hold."""

    families: Set[str] = field(default_factory=set)
    chains: Dict[ChainKey, Chain] = field(default_factory=dict)
    sets: Dict[str, Dict[str, str]] = field(default_factory=dict)
    """Of the bridge table: set name to element to its comment."""
    maps: Dict[str, Dict[str, str]] = field(default_factory=dict)
    """Of the bridge table: map name to key to the chain that its verdict goes to."""


def load() -> Ruleset:
    """What the kernel holds, in one process."""
    # With the family alone there is an answer, and no error, where there is no table.
    return parse(system.run("nft", "-j", "list ruleset bridge; list ruleset inet; list ruleset netdev"))


def normalise(script: str) -> Ruleset:
    """What the kernel would hold, starting from nothing; loaded in a network namespace that goes at once.

    Raises HostError with nft's message where the script is wrong.
    """
    command = "nft -f - && nft -j 'list ruleset bridge; list ruleset inet'"
    return parse(system.run("unshare", "--net", "sh", "-c", command, stdin=script))


def commit(script: str) -> None:
    """One transaction: all of it, or HostError and nothing."""
    system.run("nft", "-f", "-", stdin=script)


def parse(listing: str) -> Ruleset:
    """nft's JSON (one document a ``list`` command) as a Ruleset; tables that are not ours are passed over."""
    found = Ruleset()
    for line in listing.splitlines():
        for item in json.loads(line).get("nftables", []) if line.strip() else []:
            for kind, value in item.items():
                if value.get("name" if kind == "table" else "table") == TABLE:
                    _add(found, kind, value)
    return found


def _add(found: Ruleset, kind: str, value: Dict[str, Any]) -> None:
    family = value["family"]
    if kind == "table":
        found.families.add(family)
    elif kind == "chain":
        header: Dict[str, Any] = {key: value[key] for key in _HEADER if key in value}
        found.chains[family, value["name"]] = Chain(header)
    elif kind == "rule":
        text = json.dumps(_canonical(value["expr"]), sort_keys=True)
        found.chains[family, value["chain"]].rules.append(Rule(text, value["handle"], value.get("comment", "")))
    elif kind == "map":
        found.maps[value["name"]] = dict(_verdict(element) for element in value.get("elem", []))
    elif kind == "set":
        found.sets[value["name"]] = dict(map(_element, value.get("elem", [])))


def _canonical(value: Any) -> Any:
    """Members of an anonymous set in one order; everything else as it is."""
    if isinstance(value, dict):
        return {
            key: sorted(map(_canonical, item), key=json.dumps)
            if key == "set" and isinstance(item, list)
            else _canonical(item)
            for key, item in value.items()
        }
    return [_canonical(item) for item in value] if isinstance(value, list) else value


def _element(item: Any) -> Tuple[str, str]:
    if isinstance(item, dict):
        return str(item["elem"]["val"]), item["elem"].get("comment", "")
    return str(item), ""


def _verdict(item: Any) -> Tuple[str, str]:
    key, verdict = item
    ((action, argument),) = verdict.items()
    return _element(key)[0], argument["target"] if action == "goto" else action


def declared(chains: Mapping[ChainKey, WantedChain]) -> List[str]:
    """The lines that make these chains hold exactly these rules, whatever they held."""
    families = sorted({family for family, _ in chains})
    lines = [f"add table {family} {TABLE}" for family in families]
    for (family, name), chain in chains.items():
        lines.append(f"add chain {family} {TABLE} {name} {chain.header}".rstrip())
    for (family, name), chain in chains.items():
        lines.append(f"flush chain {family} {TABLE} {name}")
        lines += [f"add rule {family} {TABLE} {name} {rule}" for rule in chain.rules]
    return lines


def dropped(keys: List[ChainKey]) -> List[str]:
    """The lines that remove these chains, which nothing may point to any more."""
    lines = [f"flush chain {family} {TABLE} {name}" for family, name in keys]
    return lines + [f"delete chain {family} {TABLE} {name}" for family, name in keys]


def referenced(chain: Chain) -> Set[str]:
    """The named sets that the chain's rules look into."""
    return {name for text in chain.texts for name in re.findall(r'"@([^"]+)"', text)}


def release(loaded: Ruleset, family: str, keys: List[ChainKey]) -> List[str]:
    """The lines that remove these chains, and the table with them where nothing else lives in it.

    ``inet barestack`` belongs to the network's masquerade and to the firewall: whichever goes last takes it along.
    """
    if family not in loaded.families:
        return []
    mine = [key for key in keys if key in loaded.chains]
    if all(key in mine for key in loaded.chains if key[0] == family):
        return [f"delete table {family} {TABLE}"]
    return dropped(mine)


def require_bridge_netfilter() -> None:
    """Without br_netfilter no bridged packet is known to belong to a connection, and every answer would be dropped."""
    for name in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables"):
        try:
            with open(f"/proc/sys/net/bridge/{name}") as stream:
                value = stream.read().strip()
        except FileNotFoundError:
            value = "missing: the kernel's br_netfilter is not loaded"
        if value != "1":
            raise HostError(f"net.bridge.{name} is {value}, must be 1: run playbooks/prepare_hosts.yml")
