# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Gives a site its first users: random passwords for who asks, argon2id hashes for the catalogue.

The file is written once, readable by its owner alone, and never again: delete it for new passwords.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from pathlib import Path

import yaml
from argon2 import PasswordHasher

PROJECT = "demo"
ROLES = {"demo": "member", "admin": "admin"}


def main() -> None:
    """Write the file named on the command line, unless it is there."""
    path = Path(sys.argv[1])
    if not path.exists():
        write(path, credentials())
        print(f"== New passwords are in {path}")


def credentials() -> str:
    """The variables as YAML: ``auth`` for the playbooks, ``admin_auth`` for those who need more, and ``users``."""
    passwords = {name: secrets.token_urlsafe(18) for name in ROLES}
    hasher = PasswordHasher(time_cost=2, memory_cost=19456, parallelism=1)  # OWASP's figures: 20 ms for each token
    auth = {name: {"username": name, "password": passwords[name], "project_name": PROJECT} for name in ROLES}
    users = [
        {"name": name, "password_hash": hasher.hash(passwords[name]), "roles": {PROJECT: role}}
        for name, role in ROLES.items()
    ]
    variables = {"auth": auth["demo"], "admin_auth": auth["admin"], "users": users}
    header = "---\n# This machine's own; not in Git. As administrator: -e 'auth={{ admin_auth }}'\n"
    return header + yaml.safe_dump(variables, sort_keys=False)


def write(path: Path, text: str) -> None:
    """Under a temporary name, which only its owner may read from the start, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".credentials.", dir=path.parent)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(temporary, path)


if __name__ == "__main__":
    main()
