# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Runs a phase inside Ansible's worker when its host is this machine, in the host's session elsewhere.

Every phase's name is a link to this file. The phase's code, options and result are the same either way; what is
saved is a new Python, its imports and the module's archive, some 0.2 s a phase, which is what a boot would spend most
of its time on. ``plugin_utils/session.py`` says what a session is. It needs SSH without a password, with pipelining;
over any other connection the phase is an ordinary module.

The control host's phases always run here, as the user who runs Ansible: ``become`` and an interpreter that a site sets
for all its hosts are not meant for them, and a module's archive would lack the libraries and the records' migrations.
"""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.util
import os
import shlex
import sys
from collections.abc import Callable
from typing import Any

from ansible import constants as C  # noqa: N812 - as everybody calls it
from ansible.errors import AnsibleConnectionFailure
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.parameters import remove_values
from ansible.plugins.action import ActionBase
from ansible_collections.barestack.kvm.plugins.module_utils.control import process
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import HostError, InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import pack, unpack
from ansible_collections.barestack.kvm.plugins.module_utils.phase import (
    Phase,
    attempt,
    failure,
    phase_name,
)
from ansible_collections.barestack.kvm.plugins.plugin_utils import session

_COLLECTION = "ansible_collections.barestack.kvm.plugins"
_SSH_FAILED = 255
"""The SSH client's exit code for its own failures."""
_Execute = Callable[[type[Phase], dict[str, Any], dict[str, str]], "dict[str, Any] | None"]

# Ansible loads this file before it forks a worker for each task: what is imported here is imported once, not in every
# worker again. A site whose hosts are all remote need not have the hosts' libraries.
gc.disable()
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's library would start threads, which a fork has to stop
for _phase in ("token", "compute_node", "instance", "schedule", "port", "volume"):
    importlib.import_module(f"{_COLLECTION}.modules.{_phase}")
importlib.import_module("cryptography.fernet")
_HAS_HOST_LIBRARIES = all(importlib.util.find_spec(_name) for _name in ("libvirt", "pyroute2"))
if _HAS_HOST_LIBRARIES:
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
gc.freeze()  # what stays for good is not looked through again: not by the workers, which would copy it, nor at the end
gc.enable()


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
        self._end_with_the_run()
        answer = None
        if self._is_this_machine(phase, task_vars or {}):
            answer = self._valid(phase, arguments, self._execute_here)
        elif start := self._session(task_vars or {}):
            answer = self._valid(phase, arguments, functools.partial(self._execute_in_session, start))
        if answer is None:
            answer = self._execute_module(module_args=arguments, task_vars=task_vars)
        result.update(answer)
        result.update({field: pack(result[field]) for field in phase.handles if field in result})
        if phase.secret and not result.get("failed"):
            result["_ansible_no_log"] = True
        return result

    @staticmethod
    def _end_with_the_run() -> None:
        """So that a phase of a killed run does not go on unseen.

        A worker has a session of its own: a kill of the process group passes it by. A remote module ends because its
        worker no longer reads what it writes, a session because its holder sees it.
        """
        if process.run_pid() != os.getpid():
            process.end_with(process.run_pid())

    def _valid(self, phase: type[Phase], arguments: dict[str, Any], execute: _Execute) -> dict[str, Any] | None:
        """Validate the options as the module would, execute, and mask what must not be displayed. None as execute."""
        validated = ArgumentSpecValidator(phase.argument_spec).validate(arguments)
        if validated.error_messages:
            return failure(InvalidRequest(validated.errors.msg))
        environment: dict[str, str] = {}
        self._compute_environment_string(environment)
        answer = execute(phase, validated.validated_parameters, environment)
        if answer and validated._no_log_values:
            answer = remove_values(answer, validated._no_log_values)
        return answer

    def _execute_here(self, phase: type[Phase], params: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
        os.environ.update(environment)  # the task's own, and so is this worker
        return attempt(phase, params, self._task.check_mode)

    def _execute_in_session(
        self, start: session.Start, phase: type[Phase], params: dict[str, Any], environment: dict[str, str]
    ) -> dict[str, Any] | None:
        """None where no session can be."""
        name = phase_name(phase)
        request = {
            "phase": name,
            "params": params,
            "check_mode": self._task.check_mode,
            "environment": environment,
        }
        try:
            return session.ask(start, C.DEFAULT_LOCAL_TMP, process.run_pid(), request)
        except session.Lost as error:
            if error.returncode == _SSH_FAILED or error.returncode < 0:  # a signal ended the client
                raise AnsibleConnectionFailure(f"{name}: the connection was lost: {error.stderr}") from None
            return failure(HostError(f"{name}: Python on the host has ended ({error.returncode}): {error.stderr}"))
        except session.NoSession:
            return None

    def _session(self, task_vars: dict[str, Any]) -> session.Start | None:
        """What starts a session on the task's host; None where there can be none, or it would need a password.

        What Ansible's own connection would run: the connection plugin builds it. The key leaves out what become plugins
        make up for each task.
        """
        connection, become = self._connection, self._connection.become
        python = self._templar.template(task_vars.get("ansible_python_interpreter", "auto"))
        if str(python).startswith("auto"):  # the first module finds it out
            python = task_vars.get("ansible_facts", {}).get("discovered_interpreter_python")
        if not python or connection.transport != "ssh" or connection.get_option("password"):
            return None
        if not self._is_pipelining_enabled("new", wrap_async=bool(self._task.async_val)):
            return None
        host = connection.get_option("host") or self._play_context.remote_addr
        command = session.remote_command(python)
        key = [host, command]
        if become:
            if become.get_option("become_pass", playcontext=self._play_context):
                return None
            key += [become._load_name, *(str(become.get_option(f"become_{name}")) for name in ("user", "flags", "exe"))]
            command = become.build_become_command(command, self._connection._shell)
        shell = f"/bin/sh -c {shlex.quote(command)}"
        built = connection._build_command(connection.get_option("ssh_executable"), "ssh", host, shell)
        return session.Start(built, repr((key, built[:-1])))

    def _is_this_machine(self, phase: type[Phase], task_vars: dict[str, Any]) -> bool:
        """Whether the module would run on this machine, as this user, with this very Python."""
        if phase.on_control:
            return True
        if self._connection.transport != "local" or self._play_context.become or not _HAS_HOST_LIBRARIES:
            return False
        # As it is: a copy of the string would not be trusted as a template.
        wanted = self._templar.template(task_vars.get("ansible_python_interpreter", sys.executable))
        return os.path.realpath(str(wanted)) == os.path.realpath(sys.executable)
