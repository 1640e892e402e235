# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What a site sets wrongly of the scheduler: the first phase says so, and nothing is written."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest

from .conftest import Site

GPU = {"name": "gpu", "vendor_id": "10de", "product_id": "1eb8"}


@pytest.mark.parametrize("check", [False, True], ids=["", "check"])
@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"enabled_filter": []}, "scheduler: there is no option enabled_filter; there are <weigher>_weight_mul"),
        ({"host_subset_size": "3"}, "scheduler: host_subset_size is '3', which is not a whole number"),
        ({"max_attempts": 4}, "scheduler: max_attempts is 4; 1 to 3 is allowed"),
        ({"enabled_filters": ["RamFilter"]}, "enabled_filters: there is no RamFilter; there are ComputeStatus, "),
        ({"weight_classes": ["Ram"]}, "weight_classes: there is no Ram; there are RAMWeigher, CPUWeigher, "),
        ({"ram_weight_multiplier": "much"}, "multipliers: ram_weight_multiplier is 'much', which is not a number"),
        (
            {"rom_weight_multiplier": 1.0},
            "multipliers: there is no rom_weight_multiplier; there are ram_weight_multiplier, ",
        ),
        ({"pci_alias": ["gpu"]}, "scheduler: pci_alias is ['gpu'], which is not a list of mappings"),
        (
            {"pci_alias": [{**GPU, "device_type": "VF"}]},
            "pci_alias gpu: device_type=VF is not one of type-PCI, type-PF, type-VF",
        ),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_written(
    site: Site, scheduler: dict[str, Any], message: str, check: bool
) -> None:
    site.scheduler = scheduler
    _refused(site, message, check)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nowhere", "cannot be loaded: ModuleNotFoundError: No module named 'nowhere'"),
        ("RACK = 'r1'", "holds no rule: give it a subclass of Filter, RowFilter or Weigher"),
    ],
)
def test_a_wrong_rule_is_refused_before_anything_is_written(site: Site, text: str, message: str) -> None:
    rules = site.directory / "scheduler_rules"
    rules.mkdir()
    (rules / "rack.py").write_text(text)
    _refused(site, f"{rules}/rack.py: {message}", scheduler_rules_path=str(rules))


def _refused(site: Site, message: str, check: bool = False, **options: Any) -> None:
    before = site.dump()
    with pytest.raises(InvalidRequest, match=f"^{re.escape(message)}"):
        site.phase("instance", check=check, requests=[site.server()], **options)
    assert site.dump() == before
    assert site.rows("instances") == site.rows("leases") == []


def test_what_may_be_set_passes(site: Site) -> None:
    site.scheduler = {
        "enabled_filters": ["ComputeFilter"],
        "ram_weight_multiplier": 2,
        "max_attempts": 3,
        "pci_alias": [GPU],
    }
    site.boot(site.server(), twice=True)
    assert site.states() == ("ACTIVE", None, "RUNNING")
