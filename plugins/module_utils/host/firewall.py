# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Loads the ports' rules, all of a call in one transaction: Nova's setup_basic_filtering and prepare_instance_filter.

Rules stand before the tap exists (they name it, they do not point to it), so a guest never runs without them. What is
loaded is compared with what is wanted rule by rule: a rule that someone removed is noticed and mended.

``sg4-<group>`` and ``sg6-<group>`` hold the addresses of the group's members on this host; an element's comment
is the port it came with.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from typing import Callable, Dict, Iterable, List, Mapping, Sequence, Set

from ansible_collections.barestack.kvm.plugins.module_utils.host import nft
from ansible_collections.barestack.kvm.plugins.module_utils.host.network import host_lock
from ansible_collections.barestack.kvm.plugins.module_utils.host.nft import TABLE, ChainKey, Ruleset
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.host.rules import (
    MAPS,
    PortRules,
    base_chains,
    chain_name,
    declared_maps,
    declared_set,
    port_rules,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.effects import Effects
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import BarestackError
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Port


@dataclass(frozen=True)
class Step:
    """One effect of a transaction, with what ``--diff`` shows of it."""

    effect: str
    target: str
    before: str = ""
    after: str = ""


@dataclass
class Transaction:
    """nft lines in the order the kernel wants them, and the effects that they are."""

    chains: List[str] = field(default_factory=list)
    elements: List[str] = field(default_factory=list)
    removals: List[str] = field(default_factory=list)
    steps: List[Step] = field(default_factory=list)

    @property
    def script(self) -> str:
        """What nft reads."""
        return "\n".join([*self.chains, *self.elements, *self.removals]) + "\n"


class Firewall:
    """The rules of this host's ports."""

    def __init__(self, paths: Paths, effects: Effects) -> None:
        self._paths = paths
        self._effects = effects

    def ensure(self, ports: Sequence[Port]) -> Dict[str, BarestackError]:
        """Load the rules of all these ports; a port whose rules are wrong is left out, with its error by its id.

        A port without port security gets none, and loses those it had.
        """
        wanted: List[PortRules] = []
        errors: Dict[str, BarestackError] = {}
        for port in ports:
            try:
                wanted += [port_rules(port)] if port.port_security_enabled else []
            except BarestackError as error:
                errors[port.id] = error
        gone = [port for port in ports if not port.port_security_enabled]
        if wanted and not self._effects.check_mode:
            nft.require_bridge_netfilter()
        self._change(wanted, gone)
        return errors

    def release(self, ports: Sequence[Port]) -> None:
        """Remove whatever there is of these ports; with the last one on this host, our tables."""
        self._change([], ports)

    def _change(self, wanted: Sequence[PortRules], gone: Sequence[Port]) -> None:
        with host_lock(self._paths, self._effects.check_mode):
            loaded = nft.load()
            # What is not loaded at all needs no comparing: a boot of new ports costs one nft less.
            known = [port for port in wanted if any(key in loaded.chains for key in port.chains)]
            compare = known or (wanted and any(key in loaded.chains for key in base_chains()))
            normal = nft.normalise(complete_script(known)) if compare else Ruleset()
            change = transaction(loaded, normal, wanted, gone)
            act: Callable[[], None] = partial(nft.commit, change.script)
            for step in change.steps:
                self._effects.apply(step.effect, step.target, act, before=step.before, after=step.after)
                act = _carried_out


def _carried_out() -> None:
    """One transaction is all the steps: the first carries it out, the others say what else was in it."""


def protected(ports: Iterable[Port]) -> Set[str]:
    """The ids of those ports whose rules the kernel holds: looked up from the base chains, and ending in a drop."""
    loaded = nft.load()
    base = all(key in loaded.chains and loaded.chains[key].rules for key in base_chains())
    return {port.id for port in ports if base and all(_guards(loaded, kind, port.tap_device) for kind in MAPS)}


def port_is_protected(port: Port) -> bool:
    """Whether the kernel holds the port's rules. For many ports ask :func:`protected` once."""
    return port.id in protected([port])


def guarded(loaded: Ruleset) -> Dict[str, bool]:
    """Tap -> whether its rules are whole, of every tap of which anything is loaded. Pure."""
    base = all(key in loaded.chains and loaded.chains[key].rules for key in base_chains())
    taps = {tap for kind in MAPS for tap in loaded.maps.get(kind, {})}
    taps |= {name[len(kind) + 1 :] for kind in MAPS for _, name in loaded.chains if name.startswith(f"{kind}-")}
    return {tap: base and all(_guards(loaded, kind, tap) for kind in MAPS) for tap in taps}


def _guards(loaded: Ruleset, kind: str, tap: str) -> bool:
    name = chain_name(kind, tap)
    chain = loaded.chains.get(("bridge", name))
    ends = chain is not None and bool(chain.rules) and '"drop"' in chain.rules[-1].text
    return ends and loaded.maps.get(kind, {}).get(tap) == name


def complete_script(wanted: Sequence[PortRules]) -> str:
    """Our tables with these ports alone, as nft's text."""
    chains = base_chains()
    for port in wanted:
        chains.update(port.chains)
    return "\n".join(_declared(chains, {name for port in wanted for name in (*port.members, *port.remotes)}, True))


def transaction(loaded: Ruleset, normal: Ruleset, wanted: Sequence[PortRules], gone: Sequence[Port]) -> Transaction:
    """What makes the kernel hold the wanted ports and not the gone ones. Empty where it does. Pure.

    ``normal`` is :func:`complete_script` as the kernel lists it, of those wanted ports of which anything is loaded.
    """
    change = Transaction()
    texts = {"": base_chains() if wanted else {}, **{port.port_id: port.chains for port in wanted}}
    stale = {owner: _stale(chains, loaded, normal) for owner, chains in texts.items()}
    state = dataclasses.replace(loaded, chains={**loaded.chains, **normal.chains})
    state.chains.update({key: nft.Chain({}) for chains in stale.values() for key in chains if key not in state.chains})
    state.sets = {name: dict(elements) for name, elements in loaded.sets.items()}
    sets = {name for port in wanted for name in (*port.members, *port.remotes)} - set(loaded.sets)
    changed = {owner for owner, chains in stale.items() if chains}
    changed |= {""} if sets or (wanted and any(name not in loaded.maps for name in MAPS)) else set()
    changed |= {port.port_id for port in wanted if _elements(change, loaded, state, port)}
    changed |= {port.id for port in gone if _removed(change, loaded, state, port)}
    changed |= {""} if _is_last(loaded, state) else set()
    if not changed:
        return change
    chains = {key: chain for owner in stale.values() for key, chain in owner.items()}
    # A base chain with another hook cannot be changed, only made anew.
    rebuilt = [key for key in chains if key in loaded.chains and normal.chains[key].header != loaded.chains[key].header]
    change.chains = nft.dropped(rebuilt) + _declared(chains, sets, bool(wanted))
    _finish(change, loaded, state, {name for port in wanted for name in port.remotes})
    change.steps = [_step(owner, stale.get(owner, {}), loaded, normal) for owner in sorted(changed)]
    return change


def _stale(
    chains: Mapping[ChainKey, nft.WantedChain], loaded: Ruleset, normal: Ruleset
) -> Dict[ChainKey, nft.WantedChain]:
    return {
        key: chain
        for key, chain in chains.items()
        if key not in loaded.chains or not normal.chains[key].same(loaded.chains[key])
    }


def _declared(chains: Mapping[ChainKey, nft.WantedChain], sets: Set[str], maps: bool) -> List[str]:
    """Chains, maps and sets in the order nft can take them: what a rule looks into comes before the rule."""
    tables = [f"add table bridge {TABLE}"] if maps else []
    return [*tables, *(declared_maps() if maps else []), *map(declared_set, sorted(sets)), *nft.declared(chains)]


def _elements(change: Transaction, loaded: Ruleset, state: Ruleset, port: PortRules) -> bool:
    """Put the port into the maps and its groups' sets, and take it out of the sets of groups it left."""
    before = len(change.elements)
    for kind in MAPS:
        name, found = chain_name(kind, port.tap), loaded.maps.get(kind, {}).get(port.tap)
        if found != name:
            if found is not None:
                change.elements.append(f'delete element bridge {TABLE} {kind} {{ "{port.tap}" : goto {found} }}')
            change.elements.append(f'add element bridge {TABLE} {kind} {{ "{port.tap}" : goto {name} }}')
    for name, elements in state.sets.items():
        if name.startswith("sg"):
            left = [item for item, owner in elements.items() if owner == port.port_id]
            _delete(change, name, elements, [item for item in left if item not in port.members.get(name, ())])
    for name, addresses in port.members.items():
        elements = state.sets.setdefault(name, {})
        # An address that another port left behind is taken over, else it would go when that port is removed.
        _delete(
            change, name, elements, [item for item in addresses if elements.get(item, port.port_id) != port.port_id]
        )
        for item in addresses:
            if item not in elements:
                elements[item] = port.port_id
                comment = f'comment "{port.port_id}"'
                change.elements.append(f"add element bridge {TABLE} {name} {{ {item} {comment} }}")
    return len(change.elements) > before


def _removed(change: Transaction, loaded: Ruleset, state: Ruleset, port: Port) -> bool:
    """Take the port out of maps and sets, and remove its chains."""
    before = len(change.elements) + len(change.removals)
    for kind in MAPS:
        found = loaded.maps.get(kind, {}).get(port.tap_device)
        if found is not None:
            change.elements.append(f'delete element bridge {TABLE} {kind} {{ "{port.tap_device}" : goto {found} }}')
    for name, elements in state.sets.items():
        _delete(change, name, elements, [item for item, owner in elements.items() if owner == port.id])
    keys = [("bridge", chain_name(kind, port.tap_device)) for kind in MAPS]
    keys = [key for key in keys if state.chains.pop(key, None)]
    change.removals += nft.dropped(keys)
    return len(change.elements) + len(change.removals) > before


def _delete(change: Transaction, name: str, elements: Dict[str, str], items: Sequence[str]) -> None:
    for item in items:
        del elements[item]
        change.elements.append(f"delete element bridge {TABLE} {name} {{ {item} }}")


def _is_last(loaded: Ruleset, state: Ruleset) -> bool:
    """Whether there is something of ours, and no port that needs it."""
    base = base_chains()
    mine = "bridge" in loaded.families or any(key in loaded.chains for key in base)
    return mine and all(key in base for key in state.chains if key[0] == "bridge")


def _finish(change: Transaction, loaded: Ruleset, state: Ruleset, needed: Set[str]) -> None:
    """Remove the sets that no one needs any more, or everything where no port is left."""
    if _is_last(loaded, state):
        change.chains, change.elements = [], []
        change.removals = nft.release(loaded, "bridge", [key for key in loaded.chains if key[0] == "bridge"])
        change.removals += nft.release(loaded, "inet", [key for key in base_chains() if key[0] == "inet"])
        return
    used: Set[str] = needed.union(*(nft.referenced(chain) for chain in state.chains.values()))
    idle = [name for name, items in state.sets.items() if name.startswith("sg") and not items and name not in used]
    change.removals += [f"delete set bridge {TABLE} {name}" for name in idle]


def _step(owner: str, stale: Mapping[ChainKey, nft.WantedChain], loaded: Ruleset, normal: Ruleset) -> Step:
    """What ``--diff`` shows: nft's text for the rules that are wanted, JSON for any other that was there."""
    before, after = [], []
    for key, chain in stale.items():
        after += [f"{key[0]} {key[1]}", *(f"  {rule}" for rule in chain.rules)]
        if key in loaded.chains:
            text = dict(zip(normal.chains[key].texts, chain.rules))
            before += [f"{key[0]} {key[1]}", *(f"  {text.get(rule, rule)}" for rule in loaded.chains[key].texts)]
    return Step("firewall.port" if owner else "firewall.table", owner or TABLE, "\n".join(before), "\n".join(after))
