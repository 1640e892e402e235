# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""One of several runs at once, as a program: each line of its input is a task, each line of its output an answer.

A task is ``{"records_url", "directory", "catalog", "hosts", "scheduler", "rounds": [[request, ...], ...], "delete"}``.
Each round boots its servers as boot_instance.yml does on the control host, with the rollback of what fails, and deletes
them again where ``delete`` says so. The answer is ``{"servers": [...], "error": [class, message] or null}``.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def load() -> Any:
    """The tests' site; with it everything that a run imports."""
    sys.path.insert(0, str(HERE.parents[3] / "collections"))
    spec = importlib.util.spec_from_file_location("site_of_the_phases", HERE / "conftest.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("token", "instance", "compute_node", "schedule", "port", "volume"):
        importlib.import_module(f"ansible_collections.barestack.kvm.plugins.modules.{name}")
    return module


def run(conftest: Any, task: dict[str, Any]) -> dict[str, Any]:
    """One task's answer."""
    from ansible_collections.barestack.kvm.plugins.module_utils.control import keeper
    from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import BarestackError

    keeper.start = lambda *_: None  # it would outlive the test; this process lives as long as its runs
    site = conftest.Site(Path(task["directory"]), task["records_url"])
    site.catalog, site.hosts, site.scheduler = task["catalog"], task["hosts"], task["scheduler"]
    servers: list[dict[str, Any]] = []
    error = None
    try:
        for number, requests in enumerate(task["rounds"]):
            site.run = f"round {number}"  # with a token of its own
            servers = site.play(*requests)
            if task["delete"]:
                site.delete(*(server["name"] for server in servers))
    except BarestackError as caught:
        error = [type(caught).__name__, str(caught)]
    return {"servers": servers, "error": error}


def main() -> None:
    """Until its input ends."""
    conftest = load()
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(conftest, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
