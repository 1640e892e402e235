# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What an operator may set, and what is said where it cannot be."""

from __future__ import annotations

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.options import Options, names
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest


def test_novas_defaults():
    options = Options.of({})
    assert options == Options()
    assert (options.max_attempts, options.host_subset_size, options.max_io_ops_per_host) == (3, 1, 8)
    assert (options.max_instances_per_host, options.metrics_weight_of_unavailable) == (50, -10000.0)
    assert options.restrict_isolated_hosts_to_isolated_images
    assert options.metrics_required


def test_a_sites_mapping():
    options = Options.of(
        {
            "enabled_filters": ["ComputeFilter"],
            "ram_weight_multiplier": 2,
            "multipliers": {"cpu_weight_multiplier": 0.5},
            "host_subset_size": 4,
            "metrics_weight_of_unavailable": -1,
            "metrics_weight_setting": ["cpu=1.5", "net=-1"],
            "image_properties_default_architecture": None,
            "site": {"rack": "r1"},
        }
    )
    assert options.enabled_filters == ("ComputeFilter",)
    assert options.multipliers == {"ram_weight_multiplier": 2, "cpu_weight_multiplier": 0.5}
    assert (options.host_subset_size, options.metrics_weight_of_unavailable) == (4, -1.0)
    assert options.weights("metrics_weight_setting") == [("cpu", 1.5), ("net", -1.0)]
    assert options.site == {"rack": "r1"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"enabled_filter": []}, "there is no option enabled_filter; there are .*enabled_filters"),
        ({"enabled_filters": "ComputeFilter"}, "enabled_filters is 'ComputeFilter', which is not a list of names"),
        ({"enabled_filters": [1]}, r"enabled_filters is \[1\], which is not a list of names"),
        ({1: 2}, "there is no option 1; there are .*enabled_filters"),
        ({"max_attempts": 0}, "max_attempts is 0; 1 to 3 is allowed"),
        ({"max_attempts": 4}, "max_attempts is 4; 1 to 3 is allowed"),
        ({"max_attempts": "3"}, "max_attempts is '3', which is not a whole number"),
        ({"max_attempts": True}, "max_attempts is True, which is not a whole number"),
        ({"max_attempts": None}, "max_attempts is None, which is not a whole number"),
        ({"host_subset_size": 0}, "host_subset_size is 0; 1 or more is allowed"),
        ({"max_io_ops_per_host": -1}, "max_io_ops_per_host is -1; 0 or more is allowed"),
        ({"metrics_required": "yes"}, "metrics_required is 'yes', which is not true or false"),
        ({"metrics_weight_of_unavailable": "low"}, "is 'low', which is not a number"),
        ({"image_properties_default_architecture": 64}, "is 64, which is not text"),
        ({"pci_alias": ["gpu"]}, r"pci_alias is \['gpu'\], which is not a list of mappings"),
        ({"pci_alias": {"name": "gpu"}}, "pci_alias is {'name': 'gpu'}, which is not a list of mappings"),
        ({"site": []}, r"site is \[\], which is not a mapping"),
        ({"ram_weight_multiplier": "much"}, "multipliers: ram_weight_multiplier is 'much', which is not a number"),
        ({"metrics_weight_setting": ["cpu"]}, "metrics_weight_setting: 'cpu' cannot be read; give <name>=<number>"),
        ({"image_props_weight_setting": ["=2"]}, "image_props_weight_setting: '=2' cannot be read"),
    ],
)
def test_what_cannot_be_set(values, message):
    with pytest.raises(InvalidRequest, match=message):
        Options.of(values)


def test_every_name_may_be_set():
    assert set(names()) | {"multipliers"} == set(Options.__dataclass_fields__)
