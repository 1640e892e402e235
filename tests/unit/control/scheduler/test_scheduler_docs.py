# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""docs/scheduler.md names the rules and options that there are, with their defaults, and its example works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Aggregate, Hosts
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.decide import decide
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters import DEFAULT, FILTERS
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.options import Options, names
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.site_rules import load
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers import WEIGHERS
from scheduler_site import roomy, spec

PAGE = (Path(__file__).parents[4] / "docs" / "scheduler.md").read_text()


def rows(name):
    block = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- end -->", PAGE, re.DOTALL)[1]
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in block.splitlines()[2:]]


def test_filters():
    def on(rule):
        return "always" if rule.always else "default" if rule.name in DEFAULT else ""

    assert [row[:2] for row in rows("filters")] == [[rule.name, on(rule)] for rule in FILTERS]


def test_weighers():
    assert [row[:3] for row in rows("weighers")] == [
        [rule.name, rule.multiplier_option, str(rule.default_multiplier)] for rule in WEIGHERS
    ]
    assert [row[0] for row in rows("weighers") if "from 0" in row[3]] == [
        rule.name for rule in WEIGHERS if rule.minval == 0
    ]


def test_options():
    told = {name: row[1] for row in rows("options") for name in row[0].split(", ")}
    assert list(told) == names()
    for name, default in told.items():
        value = getattr(Options(), name)
        if default:
            assert default == (str(value).lower() if isinstance(value, bool) else str(value)), name
        else:
            assert not value, name


@pytest.mark.parametrize(("rack", "expected"), [("r1", "a"), ("r2", "b"), (None, "a")])
def test_the_example_of_a_sites_rule(tmp_path, rack, expected):
    (tmp_path / "rack.py").write_text(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1])
    hosts = [roomy("a", aggregates=(Aggregate("r1"),)), roomy("b", aggregates=(Aggregate("r2"),))]
    [decision] = decide(Hosts.of(hosts), [spec(scheduler_hints={"rack": rack})], rules=load(tmp_path))
    assert decision.host == expected
    if rack == "r2":
        assert decision.explain.endswith("RackFilter removed a (rack r2 wanted, a is not in it)")
