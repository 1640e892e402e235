# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The tables of docs/catalogue.md and docs/requests.md are the argument specs. Run as a script it writes them anew."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "collections"))

import pytest  # noqa: E402
from ansible_collections.barestack.kvm.plugins.module_utils.control import catalog_spec, request_spec  # noqa: E402

DOCUMENTS = {
    "catalogue.md": catalog_spec.SPEC,
    "requests.md": {
        "instances": request_spec.SPEC,
        "instances: scheduler_hints.group": request_spec.GROUP,
        "instances: volumes": request_spec.VOLUME,
        "instances: wait_for": request_spec.WAIT_FOR,
    },
}


def rows(spec: dict[str, Any], stem: str = "") -> list[str]:
    """One row a key, nested keys after their parent."""
    lines = []
    for name, option in spec.items():
        default = "required" if option.get("required") else _shown(option.get("default"))
        names = ", ".join(f"`{stem}{key}`" for key in (name, *option.get("aliases", ())))
        allowed = f" One of {', '.join(option['choices'])}." if "choices" in option else ""
        lines.append(f"| {names} | {option['type']} | {default} | {option['description']}{allowed} |")
        lines += rows(option.get("options", {}), f"{stem}{name}.")
    return lines


def _shown(default: Any) -> str:
    if default in (None, "", [], {}):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def table(spec: dict[str, Any]) -> str:
    return "\n".join(["| key | type | default | |", "|---|---|---|---|", *rows(spec)])


def written(text: str, section: str) -> str:
    found = re.search(rf"<!-- {section} -->\n(.*?)\n<!-- end -->", text, re.DOTALL)
    return found.group(1) if found else ""


CASES = [(document, section) for document, sections in DOCUMENTS.items() for section in sections]


@pytest.mark.parametrize(("document", "section"), CASES)
def test_tables_are_the_specs(document: str, section: str) -> None:
    text = (ROOT / "docs" / document).read_text()
    assert written(text, section) == table(DOCUMENTS[document][section]), f"run: python {Path(__file__).name}"


def test_refused_options_are_listed() -> None:
    text = (ROOT / "docs" / "requests.md").read_text()
    assert written(text, "refused") == refused()


def refused() -> str:
    reasons: dict[str, list[str]] = {}
    for option, reason in request_spec.REFUSED.items():
        reasons.setdefault(reason, []).append(f"`{option}`")
    return "\n".join(f"* {', '.join(options)}: {reason}." for reason, options in reasons.items())


if __name__ == "__main__":
    for document, sections in DOCUMENTS.items():
        path = ROOT / "docs" / document
        text = path.read_text()
        tables = {section: table(spec) for section, spec in sections.items()} | {"refused": refused()}
        for section, body in tables.items():
            pattern = rf"(<!-- {section} -->\n).*?(<!-- end -->)"
            text = re.sub(pattern, lambda found, b=body: f"{found[1]}{b}\n{found[2]}", text, flags=re.DOTALL)
        path.write_text(text)
