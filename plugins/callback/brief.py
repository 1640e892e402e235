# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible's own screen output without the plays whose turn it was not."""

from __future__ import annotations

DOCUMENTATION = r"""
name: brief
type: stdout
short_description: Ansible's screen output, without plays that had nothing to do
version_added: 0.1.0
description:
  - As P(ansible.builtin.default#callback), but a play is named with its first task that is shown.
  - C(boot_instance.yml) has plays for what seldom comes about, another attempt or a rollback; they are not shown then.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
author:
  - barestack.kvm contributors (@barestack)
"""

from typing import Any

from ansible.plugins.callback.default import CallbackModule as Default


class CallbackModule(Default):
    """Named in ``stdout_callback``."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "barestack.kvm.brief"

    _unnamed: Any = None

    def v2_playbook_on_play_start(self, play: Any) -> None:
        self._play = self._unnamed = play

    def v2_playbook_on_no_hosts_matched(self) -> None:
        self._unnamed = None

    def _print_task_banner(self, task: Any) -> None:
        if self._unnamed is not None:
            super().v2_playbook_on_play_start(self._unnamed)
            self._unnamed = None
        super()._print_task_banner(task)
