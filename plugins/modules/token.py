#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: token
short_description: A token for correct credentials
version_added: 0.1.0
description:
  - Does what Keystone does when a user logs in. It checks the password and the role, and returns a signed, expiring
    token for one project, which every phase on the control host takes and validates.
  - Users, projects and roles are those of the catalogue. The keys that sign are kept on the control host, made by the
    first token and rotated with time.
  - The result is not displayed.
options:
  auth:
    description:
      - Credentials, with the names that openstacksdk uses.
      - What is missing comes from the environment's C(OS_*) variables.
    type: dict
    default: {}
    suboptions:
      auth_url:
        description: Keystone's address. Leave it out for the local identity, the only one so far. E(OS_AUTH_URL)
        type: str
      username:
        description: The user's name. E(OS_USERNAME)
        type: str
      user_id:
        description: The user's id, instead of the name. E(OS_USER_ID)
        type: str
      password:
        description: The password. E(OS_PASSWORD)
        type: str
      project_name:
        description: The project's name. E(OS_PROJECT_NAME)
        type: str
      project_id:
        description: The project's id, instead of the name. E(OS_PROJECT_ID)
        type: str
      user_domain_name:
        description: V(Default), the only domain of the local identity. E(OS_USER_DOMAIN_NAME)
        type: str
      user_domain_id:
        description: V(default). E(OS_USER_DOMAIN_ID)
        type: str
      project_domain_name:
        description: V(Default). E(OS_PROJECT_DOMAIN_NAME)
        type: str
      project_domain_id:
        description: V(default). E(OS_PROJECT_DOMAIN_ID)
        type: str
  lifetime:
    description:
      - For how many seconds the token is valid.
    type: int
    default: 3600
  key_lifetime:
    description:
      - After how many seconds a signing key is replaced. The old one validates tokens until the next time.
    type: int
    default: 2592000
extends_documentation_fragment:
  - barestack.kvm.control_phase.catalog
attributes:
  check_mode:
    description:
      - Issues a token all the same. Keys are neither made nor rotated; where there are none yet, the token serves the
        check mode of the following phases and nothing else.
    support: full
  diff_mode:
    description: Says whether keys are, or would be, made or rotated.
    support: full
author:
  - barestack.kvm contributors (@barestack)
"""

EXAMPLES = r"""
- name: Token
  barestack.kvm.token:
    auth:
      username: demo
      password: "{{ vault_demo_password }}"
      project_name: demo
    catalog: "{{ catalog }}"
  register: token

- name: Token with the credentials of an openrc file
  barestack.kvm.token:
    catalog: "{{ catalog }}"
  register: token
"""

RETURN = r"""
token:
  description: The token. It is a secret.
  returned: success
  type: str
issued_at:
  description: When it was issued.
  returned: success
  type: str
  sample: "2025-01-01T12:00:00.000000Z"
expires_at:
  description: Until when it is valid.
  returned: success
  type: str
  sample: "2025-01-01T13:00:00.000000Z"
user:
  description: Whose it is.
  returned: success
  type: dict
  sample: {"id": "0d6b7c2e-6a55-5d0b-a35b-8f2f3d9a8c11", "name": "demo"}
project:
  description: The project that it is for.
  returned: success
  type: dict
  sample: {"id": "f3a4b1de-91a7-5a7c-8f6e-b6f0b8c3a1de", "name": "demo"}
roles:
  description: The roles held there, with the implied ones.
  returned: success
  type: list
  elements: str
  sample: [member, reader]
"""

from typing import Any

from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog import (
    IDENTITY_SECTIONS,
    Catalog,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.credentials import ENVIRONMENT  # noqa: E402
from ansible_collections.barestack.kvm.plugins.module_utils.control.identity import (  # noqa: E402
    KEY_LIFETIME,
    authenticate,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.session import CATALOG_SPEC
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.phase import Phase, run_module


class IssueToken(Phase):
    """Check the credentials, sign the token."""

    on_control = True
    secret = True
    name = "token"
    argument_spec = {
        "auth": {
            "type": "dict",
            "default": {},
            "options": {option: {"type": "str", "no_log": option == "password"} for option in ENVIRONMENT},
        },
        "lifetime": {"type": "int", "default": 3600},
        "key_lifetime": {"type": "int", "default": KEY_LIFETIME, "no_log": False},
        **CATALOG_SPEC,
    }

    def run(self) -> dict[str, Any]:
        """The token and whose it is, in a result that Ansible does not display."""
        lifetime, key_lifetime = self.params["lifetime"], self.params["key_lifetime"]
        if not 0 < lifetime <= key_lifetime:
            raise InvalidRequest(
                f"lifetime: {lifetime} is not allowed, it must be between 1 and key_lifetime, {key_lifetime}"
            )
        token = authenticate(
            self.params["auth"] or {},
            Catalog.load(self.params["catalog"], IDENTITY_SECTIONS),
            self.params["keys_directory"],
            lifetime,
            effects=self.effects,
            key_lifetime=key_lifetime,
        )
        identity = token.identity
        return {
            "token": token.secret,
            "issued_at": token.issued_at,
            "expires_at": token.expires_at,
            "user": {"id": identity.user_id, "name": identity.user_name},
            "project": {"id": identity.project_id, "name": identity.project_name},
            "roles": list(identity.roles),
        }


PHASE = IssueToken


def main() -> None:
    """Ansible's entry."""
    run_module(PHASE)


if __name__ == "__main__":
    main()
