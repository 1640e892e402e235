# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The pages for users say what is there: modules, variables, links, queries, messages, the example site."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.barestack.kvm.plugins.filter import handle
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog import SECTIONS, Catalog
from ansible_collections.barestack.kvm.plugins.module_utils.control.inventory import REPORT_SPEC
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import Records
from ansible_collections.barestack.kvm.plugins.module_utils.control.request import parse
from sqlalchemy import text

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CALL = re.compile(r"^ +barestack\.kvm\.(\w+):$", re.MULTILINE)
PLAYBOOKS = "\n".join(path.read_text() for path in sorted((ROOT / "playbooks").rglob("*.yml")))


def block(page: str, name: str) -> str:
    found = re.search(rf"<!-- {re.escape(name)} -->\n(.*?)\n<!-- end -->", page, re.DOTALL)
    assert found, f"the page has no block {name}"
    return found[1]


def column(table: str, index: int) -> list[str]:
    """The names in a column of a table, without the header."""
    rows = [re.split(r" *(?<!\\)\| *", line)[1:-1] for line in table.splitlines() if line.startswith("|")]
    return [row[index] for row in rows if row[0] not in ("phase", "module", "variable", "message", "---")]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# README


def phase_tables() -> list[str]:
    """The phases, and the modules around them."""
    return block(README, "phases").split("And around them:")


def test_readme_names_exactly_the_modules() -> None:
    main, others = phase_tables()
    named = {name for cell in column(main, 1) + column(others, 0) for name in names(cell)}
    assert named == {path.stem for path in (ROOT / "plugins" / "modules").glob("*.py")}


def test_readme_says_where_a_module_runs() -> None:
    main, others = phase_tables()
    rows = [*zip(column(main, 1), column(main, 2)), *zip(column(others, 0), column(others, 1))]
    for cell, where in rows:
        (name,) = names(cell)
        module = importlib.import_module(f"ansible_collections.barestack.kvm.plugins.modules.{name}")
        assert where == ("control" if module.PHASE.on_control else "compute"), name


def whole(playbook: Path) -> str:
    """A playbook with those that it imports."""

    def imported(line: re.Match[str]) -> str:
        return whole(playbook.parent / line[1])

    return re.sub(r"^  ansible\.builtin\.import_playbook: (.+)$", imported, playbook.read_text(), flags=re.MULTILINE)


def test_the_order_of_the_phases_is_the_playbooks() -> None:
    boot = whole(ROOT / "playbooks" / "boot_instance.yml")
    plays = [
        text for text in re.split(r"^- name: ", boot, flags=re.MULTILINE) if not text.startswith("Records of what")
    ]
    called = [name for play in plays for name in CALL.findall(play)]
    order = [name for cell in column(phase_tables()[0], 1) for name in names(cell)]
    assert set(order) == set(called)
    rest = iter(called)
    assert all(name in rest for name in order), "the table's order is not the playbook's"


def test_readmes_servers_can_be_booted_on_the_local_site() -> None:
    example = re.search(r"```yaml\n(.*?)```", block(README, "my-servers.yml"), re.DOTALL)
    assert example
    site = yaml.safe_load((ROOT / "inventories" / "local" / "group_vars" / "all" / "catalog.yml").read_text())
    site["images"][0].update(id="demo", checksum=f"sha256:{'0' * 64}")  # lookups that only Ansible can make
    servers = parse(
        yaml.safe_load(example[1])["instances"], Catalog.load({section: site.get(section) for section in SECTIONS})
    )
    assert [server.name for server in servers] == ["web-1", "web-2", "db"]


def test_readme_shows_a_real_boot() -> None:
    shown = block(README, "boot output")
    assert "== Booting" in shown
    assert "ACTIVE" in shown
    assert "failed=0" in shown


# All pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_playbooks_and_inventories_that_are_named_exist(page: Path) -> None:
    words = re.findall(r"(?<![\w./-])(?:playbooks|roles|bin|molecule|inventories)/[\w./-]*\w", page.read_text())
    for word in words:
        if word != "inventories/production":  # the copy that users make
            assert (ROOT / word).exists() or word.startswith("inventories/local/"), word


# docs/operations.md


OPTIONS = {"token_lifetime": "lifetime", "token_key_lifetime": "key_lifetime"}
"""Variables that could not be named as the option is: they stand beside all the others."""


SITE = {"site_rules": "scheduler_rules"}
"""Defaults that playbooks/vars/site.yml works out, to what the table calls them."""


def module_defaults() -> dict[str, Any]:
    """Option name to default, of every module that a playbook calls."""
    found: dict[str, Any] = {name: option.get("default") for name, option in REPORT_SPEC.items()}
    for name in set(CALL.findall(PLAYBOOKS)):
        module = importlib.import_module(f"ansible_collections.barestack.kvm.plugins.modules.{name}")
        found.update({key: option.get("default") for key, option in module.PHASE.argument_spec.items()})
    return found


def test_every_variable_is_documented_with_its_default() -> None:
    used = dict(re.findall(r"(?<![.\w])(?!hostvars|spawning)(\w+) \| default\(([^)]*)\)", PLAYBOOKS))
    settings = dict.fromkeys(handle._SETTINGS, "omit")
    table = block(OPERATIONS, "variables")
    documented = {n: names(default) for cell, default in zip(column(table, 0), column(table, 1)) for n in names(cell)}
    required = {"instances", "ports"}
    assert set(documented) == {*used, *settings, *required}
    defaults = module_defaults()
    for name, literal in {**used, **settings}.items():
        default = defaults[OPTIONS.get(name, name)] if literal == "omit" else yaml.safe_load(literal)
        default = SITE.get(literal, default)
        shown = documented[name]
        assert shown == ([] if default == "" else [str(default)]), f"{name}: {default!r}"


def test_the_queries_run(tmp_path: Path) -> None:
    queries = [q for sql in re.findall(r"```sql\n(.*?)```", OPERATIONS, re.DOTALL) for q in sql.split(";") if q.strip()]
    assert len(queries) >= 5
    records = Records(f"sqlite:///{tmp_path / 'records.db'}")
    for query in queries:
        records.run(lambda connection, query=query: connection.execute(text(query)).fetchall())


def test_the_messages_are_those_of_the_code() -> None:
    sources = "\n".join(path.read_text() for path in sorted((ROOT / "plugins").rglob("*.py")))
    joined = re.sub(r'"\n\s*f?"', "", sources)  # a text over several lines is one text
    for cell in column(block(OPERATIONS, "faults"), 0):
        for message in names(cell):
            assert message in joined, message


# docs/images.md, docs/catalogue.md


def test_properties_and_extra_specs_are_documented() -> None:
    code = [ROOT / "plugins/module_utils/host/guest/designer.py", ROOT / "plugins/module_utils/host/config_drive.py"]
    code += sorted((ROOT / "plugins/module_utils/control/scheduler/filters").glob("*.py"))
    sources = "\n".join(path.read_text() for path in code)
    properties = set(re.findall(r'"((?:hw|os|img)_[a-z_]+)"', sources)) - {"hw_rng"}
    extra_specs = set(re.findall(r'"(hw(?:_rng)?:[a-z_]+)"', sources))
    assert len(properties) > 15
    assert len(extra_specs) > 4
    images, catalogue = ((ROOT / "docs" / name).read_text() for name in ("images.md", "catalogue.md"))
    assert not [name for name in sorted(properties) if f"`{name}`" not in images]
    assert not [name for name in sorted(extra_specs) if f"`{name}`" not in catalogue]


# inventories/production.example


@pytest.fixture(scope="module")
def production() -> dict[str, Any]:
    command = [Path(sys.executable).with_name("ansible-inventory"), "-i", "inventories/production.example", "--list"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def test_the_example_site_is_valid(production: dict[str, Any]) -> None:
    site = production["_meta"]["hostvars"]["localhost"]
    catalog = Catalog.load({section: site[section] for section in SECTIONS})
    hosts = production["compute"]["hosts"]
    assert len(hosts) == 3
    assert sorted(host for aggregate in catalog.aggregates for host in aggregate.hosts) == sorted(hosts)
    assert len({aggregate.availability_zone for aggregate in catalog.aggregates}) == 2


def test_the_example_site_sets_documented_variables_only(production: dict[str, Any]) -> None:
    documented = {name for cell in column(block(OPERATIONS, "variables"), 0) for name in names(cell)}
    for host, variables in production["_meta"]["hostvars"].items():
        assert not [name for name in variables if not name.startswith("ansible_") and name not in documented], host


def test_the_example_hosts_are_reached_over_ssh_with_their_own_python(production: dict[str, Any]) -> None:
    for host in production["compute"]["hosts"]:
        variables = production["_meta"]["hostvars"][host]
        assert "ansible_connection" not in variables
        assert variables["ansible_python_interpreter"] == "/usr/bin/python3"
