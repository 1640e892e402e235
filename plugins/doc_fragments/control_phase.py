# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

_CATALOG = r"""  catalog:
    description:
      - What is declared. Every section is a list of entries with a unique name; see C(docs/catalogue.md).
    type: dict
    required: true
    suboptions:
      flavors:
        description: Nova's flavors.
        type: list
        elements: dict
      images:
        description: Glance's images.
        type: list
        elements: dict
      networks:
        description: Neutron's networks with their subnets.
        type: list
        elements: dict
      security_groups:
        description: Neutron's security groups with their rules.
        type: list
        elements: dict
      keypairs:
        description: Nova's keypairs.
        type: list
        elements: dict
      projects:
        description: Keystone's projects, with Nova's quota.
        type: list
        elements: dict
      users:
        description: Keystone's users.
        type: list
        elements: dict
        suboptions:
          name:
            description: Unique.
            type: str
          id:
            description: By default made from the name.
            type: str
          description:
            description: For people.
            type: str
          password_hash:
            description:
              - The password's argon2id hash, C($argon2id$v=19$...).
              - Made by C(PasswordHasher().hash(...)) of the Python library argon2-cffi.
            type: str
          enabled:
            description: Whether the user may get and use tokens; true by default.
            type: raw
          roles:
            description: A mapping of project (name or id) to V(reader), V(member), V(admin), or a list of them.
            type: raw
      aggregates:
        description: Nova's host aggregates, with their availability zones.
        type: list
        elements: dict
      server_groups:
        description: Nova's server groups, with their policies.
        type: list
        elements: dict
  keys_directory:
    description:
      - The keys that sign tokens, kept as C(keystone-manage fernet_setup) keeps them. Mode 0700, files 0600.
    type: path
    default: /var/lib/barestack/control/keys
"""


class ModuleDocFragment:
    """What every phase in the records takes."""

    DOCUMENTATION = (
        r"""
options:
  token:
    description:
      - The token, as M(barestack.kvm.token) returned it.
    type: str
    required: true
  records_url:
    description:
      - Where the records are, as SQLAlchemy writes it.
      - Empty means the SQLite file V(/var/lib/barestack/control/records.db).
    type: str
    default: ""
"""
        + _CATALOG
    )

    CATALOG = "options:\n" + _CATALOG
