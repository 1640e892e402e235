# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The walls of docs/architecture.md, read off the imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "plugins"
PREFIX = "ansible_collections.barestack.kvm.plugins.module_utils"
MODULES = sorted((PLUGINS / "modules").glob("*.py"))
UTILS = sorted((PLUGINS / "module_utils").rglob("*.py"))

ONE_IMPORTER = {
    "libvirt": "host/guest/driver.py",
    "pyroute2": "host/netlink.py",
    "pycdlib": "host/config_drive.py",
    "cryptography": "control/identity.py",
    "argon2": "control/identity.py",
    "numpy": "control/scheduler/",
    "sqlalchemy": "control/",
    "alembic": "control/records/",
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def rooms(path: Path) -> set[str]:
    return {name[len(PREFIX) + 1 :].split(".")[0] for name in imports(path) if name.startswith(PREFIX + ".")}


@pytest.mark.parametrize("path", UTILS, ids=lambda path: str(path.relative_to(PLUGINS)))
def test_rooms_keep_apart(path: Path) -> None:
    room = path.relative_to(PLUGINS / "module_utils").parts[0]
    allowed = {
        "model": {"model"},
        "control": {"model", "control", "phase"},
        "host": {"model", "host", "phase"},
        "phase.py": {"model"},
        "served.py": {"phase"},
    }
    assert rooms(path) <= allowed[room]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_stands_on_one_side(path: Path) -> None:
    assert len(rooms(path) & {"control", "host"}) <= 1


@pytest.mark.parametrize("path", UTILS + MODULES, ids=lambda path: str(path.relative_to(PLUGINS)))
def test_each_library_has_one_importer(path: Path) -> None:
    where = str(path.relative_to(PLUGINS / "module_utils")) if path in UTILS else f"modules/{path.name}"
    for library, importer in ONE_IMPORTER.items():
        if any(name.split(".")[0] == library for name in imports(path)) and path in UTILS:
            assert where.startswith(importer), f"{where} imports {library}: only {importer} may"


def test_every_phase_is_linked_to_the_action_and_grouped() -> None:
    phases = {path.stem for path in MODULES if "PHASE = " in path.read_text()}
    links = {path.stem: path.readlink() for path in (PLUGINS / "action").iterdir() if path.is_symlink()}
    assert links == dict.fromkeys(phases, Path("phase.py"))
    groups = yaml.safe_load((ROOT / "meta" / "runtime.yml").read_text())["action_groups"]
    assert {name for names in groups.values() for name in names} | {"token"} == phases
