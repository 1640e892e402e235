# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Runs a phase inside Ansible's worker when its host is this machine, and as an ordinary module elsewhere.

Every phase's name is a link to this file. The phase's code, options and result are the same either way; what is
saved is a new Python, its imports and the module's archive, some 0.2 s a phase, which is what the control
host's phases and ``inventories/local`` would spend most of their time on.

The control host's phases always run here, as the user who runs Ansible: ``become`` and an interpreter that a site sets
for all its hosts are not meant for them, and a module's archive would lack the libraries and the records' migrations.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import multiprocessing
import os
import signal
import sys
import traceback
from typing import Any

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.parameters import remove_values
from ansible.plugins.action import ActionBase
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import BarestackError, InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import pack, unpack
from ansible_collections.barestack.kvm.plugins.module_utils.phase import Phase, execute, failure

_COLLECTION = "ansible_collections.barestack.kvm.plugins"
_PR_SET_PDEATHSIG = 1

# Ansible loads this file before it forks a worker for each task: what is imported here is imported once, not in every
# worker again. A site whose hosts are all remote need not have the hosts' libraries.
for _phase in ("token", "compute_node", "instance", "schedule", "port", "volume"):
    importlib.import_module(f"{_COLLECTION}.modules.{_phase}")
importlib.import_module("cryptography.fernet")
_HAS_HOST_LIBRARIES = all(importlib.util.find_spec(_name) for _name in ("libvirt", "pyroute2"))
if _HAS_HOST_LIBRARIES:
    importlib.import_module("pyroute2")
    for _phase in (
        "network",
        "dhcp",
        "firewall",
        "volume_attachment",
        "image",
        "disk",
        "config_drive",
        "domain",
        "vif",
    ):
        importlib.import_module(f"{_COLLECTION}.modules.{_phase}")


def end_with_parent() -> None:
    """Have the kernel end this worker with ansible-playbook, so that a phase of a killed run does not go on unseen.

    A worker has a session of its own: a kill of the process group passes it by. A remote module ends because its worker
    no longer reads what it writes.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        parent = multiprocessing.parent_process()
        if parent is not None and os.getppid() != parent.pid:
            os.kill(os.getpid(), signal.SIGKILL)  # it was killed before the kernel knew


class ActionModule(ActionBase):
    """One for all phases; the task's name says which."""

    _requires_connection = False
    _supports_check_mode = True
    _supports_diff = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ansible's entry."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        name = self._task.action.rsplit(".", 1)[-1]
        phase: type[Phase] = importlib.import_module(f"{_COLLECTION}.modules.{name}").PHASE
        arguments = {option: unpack(value) for option, value in self._task.args.items()}
        if self._is_this_machine(phase, task_vars or {}):
            result.update(self._execute_here(phase, name, arguments))
        else:
            end_with_parent()
            result.update(self._execute_module(module_args=arguments, task_vars=task_vars))
        result.update({field: pack(result[field]) for field in phase.handles if field in result})
        if phase.secret and not result.get("failed"):
            result["_ansible_no_log"] = True
        return result

    def _execute_here(self, phase: type[Phase], name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        validated = ArgumentSpecValidator(phase.argument_spec).validate(arguments)
        try:
            if validated.error_messages:
                raise InvalidRequest(validated.errors.msg)
            end_with_parent()
            environment: dict[str, str] = {}
            self._compute_environment_string(environment)
            os.environ.update(environment)  # the task's own, and so is this worker
            answer = execute(phase, validated.validated_parameters, self._task.check_mode)
        except BarestackError as error:
            answer = failure(error)
        except Exception as error:  # noqa: BLE001 - a worker has no one else to report to
            answer = {"failed": True, "msg": f"{name}: {error}", "exception": traceback.format_exc()}
        masked: dict[str, Any] = remove_values(answer, validated._no_log_values)
        return masked

    def _is_this_machine(self, phase: type[Phase], task_vars: dict[str, Any]) -> bool:
        """Whether the module would run on this machine, as this user, with this very Python."""
        if phase.on_control:
            return True
        if self._connection.transport != "local" or self._play_context.become or not _HAS_HOST_LIBRARIES:
            return False
        # As it is: a copy of the string would not be trusted as a template.
        wanted = self._templar.template(task_vars.get("ansible_python_interpreter", sys.executable))
        return os.path.realpath(str(wanted)) == os.path.realpath(sys.executable)
