# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""A site's own rules: one small file each, with the same explanations."""

from __future__ import annotations

import textwrap

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler import explain
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Hosts
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.decide import decide
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.options import Options
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.site_rules import RULES, load
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from scheduler_site import roomy, spec

SCHEDULER = "ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler"

RACK = f"""
    from {SCHEDULER}.filters.base import Filter


    class RackFilter(Filter):
        \"\"\"Passes hosts of the rack that the hint ``rack`` names.\"\"\"

        name = "RackFilter"
        once = True

        def mask(self, hosts, spec):
            rack = self.wanted(spec)
            return hosts.facts.mask(lambda facts: facts.stats.get("rack") == rack) if rack else hosts.everywhere

        def reason(self, hosts, row, spec):
            return f"rack {{self.wanted(spec)}} wanted, in {{hosts.facts[row].stats.get('rack')}}"

        def wanted(self, spec):
            return spec.scheduler_hints.get("rack", self.options.site.get("rack"))
"""

EVEN = f"""
    import numpy as np
    from {SCHEDULER}.weighers.base import Weigher


    class EvenWeigher(Weigher):
        name = "EvenWeigher"
        multiplier_option = "even_weight_multiplier"

        def raw(self, hosts, rows, spec):
            return np.array([100.0 * (int(hosts.names[row][-1]) % 2 == 0) for row in rows])
"""

HOSTS = Hosts.of([roomy(f"h{number}", stats={"rack": f"r{number % 2}"}) for number in (1, 2, 3)])


@pytest.fixture
def rules(tmp_path):
    def write(**files):
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        return load(tmp_path)

    return write


def test_a_sites_filter_is_on_and_explains_itself(rules):
    [decision] = decide(HOSTS, [spec(scheduler_hints={"rack": "r1"})], rules=rules(rack=RACK))
    assert decision.explain == "h1 was chosen: 3 hosts entered; RackFilter removed h2 (rack r1 wanted, in r0)"
    assert explain.table(decision)[-1] == "h2  removed    RackFilter: rack r1 wanted, in r0"


def test_a_sites_filter_is_off_where_enabled_filters_does_not_name_it(rules):
    known = rules(rack=RACK)
    request = spec(scheduler_hints={"rack": "r0"})
    assert decide(HOSTS, [request], Options(enabled_filters=("ComputeFilter",)), known)[0].host == "h1"
    assert decide(HOSTS, [request], Options(enabled_filters=("RackFilter",)), known)[0].host == "h2"


def test_a_site_may_set_what_its_rules_read(rules):
    assert decide(HOSTS, [spec()], Options(site={"rack": "r0"}), rules(rack=RACK))[0].host == "h2"


def test_a_sites_weigher_weighs_with_a_multiplier_of_its_own(rules):
    known = rules(even=EVEN)
    [decision] = decide(HOSTS, [spec()], rules=known)
    assert decision.host == "h2"
    assert decision.weights[0].scores["EvenWeigher"] == 1.0
    negative = Options(multipliers={"even_weight_multiplier": -3.0})
    assert decide(HOSTS, [spec()], negative, known)[0].host == "h1"
    with pytest.raises(InvalidRequest, match="multipliers: there is no even_weight_multiplier"):
        decide(HOSTS, [spec()], negative)


def test_without_a_directory_there_are_only_ours(tmp_path):
    assert load(None) == load(tmp_path / "none") == load(tmp_path) == RULES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def", "broken.py: cannot be loaded: SyntaxError"),
        ("import no_such_module_here", "broken.py: cannot be loaded: ModuleNotFoundError: No module named"),
        ("1 / 0", "broken.py: cannot be loaded: ZeroDivisionError: division by zero"),
        ("x = 1", "broken.py: holds no rule"),
        (f"from {SCHEDULER}.filters.base import Filter", "broken.py: holds no rule"),
        (RACK.replace('name = "RackFilter"', ""), "broken.py: RackFilter has no name: set it in the class"),
        (EVEN.replace("multiplier_option", "option"), "broken.py: EvenWeigher has no multiplier_option"),
        (RACK.replace('"RackFilter"', '"Capacity"'), "broken.py: there is a rule Capacity already"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_error(rules, text, message):
    with pytest.raises(InvalidRequest, match=message):
        rules(broken=text)


@pytest.mark.parametrize("wrong", ["[True, True]", "hosts.everywhere[:2]", "hosts.num_instances"])
def test_a_mask_that_is_none_is_said(rules, wrong):
    known = rules(rack=RACK.replace("rack = self.wanted(spec)", f"return {wrong}"))
    with pytest.raises(InvalidRequest, match="filter RackFilter: its mask is .*; wanted is an array of 3 booleans"):
        decide(HOSTS, [spec()], rules=known)


def test_weights_for_other_rows_are_said(rules):
    known = rules(even=EVEN.replace("for row in rows", "for row in rows[:2]"))
    with pytest.raises(InvalidRequest, match="weigher EvenWeigher: 2 weights for 3 hosts"):
        decide(HOSTS, [spec()], rules=known)


def test_files_are_loaded_in_the_order_of_their_names(rules):
    known = rules(b=RACK, a=RACK.replace("RackFilter", "OtherFilter"))
    assert known.default_filters[-2:] == ("OtherFilter", "RackFilter")
    assert known.filters[: len(RULES.filters)] == RULES.filters
