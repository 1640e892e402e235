# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What every phase shares: options in, one result out, one failure, and the walk over the instances.

A module file holds its documentation, one subclass of :class:`Phase` named by ``PHASE``, and ``main()``. The same
class runs as an ordinary module on a remote host and inside Ansible's worker on the control host (see
``plugins/action/phase.py``).
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import glob
import os
import re
import select
import shutil
import signal
import stat
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, ClassVar, Dict, Iterator, List, Mapping, Tuple, Type

from ansible_collections.barestack.kvm.plugins.module_utils.model.effects import Effects
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import BarestackError
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Event, Fault, Instance
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import from_wire, to_wire

HEARTBEAT = 0.5
"""Seconds between two signs of life of a module: so long may it outlive its connection."""


class Phase:
    """One phase. Subclasses give ``argument_spec`` and :meth:`run`."""

    argument_spec: ClassVar[Dict[str, Any]] = {}
    on_control: ClassVar[bool] = False
    """Whether it runs where Ansible does, and needs none of a compute host's libraries."""
    handles: ClassVar[Tuple[str, ...]] = ("instances",)
    """The result fields that hold a handle for the next phase: they cross Ansible's variables packed."""
    secret: ClassVar[bool] = False
    """Whether its result must not be displayed. Its failures are."""

    def __init__(self, params: Mapping[str, Any], effects: Effects) -> None:
        self.params = params
        self.effects = effects

    @property
    def check_mode(self) -> bool:
        """Whether to compute only."""
        return self.effects.check_mode

    def run(self) -> Dict[str, Any]:
        """The phase's own result fields. ``changed`` and ``diff`` are added from the effects."""
        raise NotImplementedError


class HostPhase(Phase):
    """A phase on a compute host: :meth:`present` or :meth:`absent` for each instance, in a bounded pool.

    One instance's failure becomes its ``fault`` and never stops its neighbours. An instance that already has a
    fault is left alone by ``present``; one that is ``stuck`` is left alone by ``absent``, so that a disk is never
    removed under a domain that would not go.
    """

    argument_spec: ClassVar[Dict[str, Any]] = {}
    common_spec: ClassVar[Dict[str, Any]] = {
        "instances": {"type": "list", "elements": "dict", "required": True},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "max_concurrent_builds": {"type": "int", "default": 10},
    }

    def __init_subclass__(cls) -> None:
        cls.argument_spec = {**HostPhase.common_spec, **cls.__dict__.get("argument_spec", {})}

    def before(self, instances: List[Instance]) -> None:
        """Once before the walk, with the instances that it will visit: open connections, take shared locks."""

    def present(self, instance: Instance) -> Instance:
        """Make it so; return the instance, richer. Called from several threads."""
        raise NotImplementedError

    def absent(self, instance: Instance) -> Instance:
        """Undo it, whatever exists of it; nothing there is fine. Called from several threads."""
        raise NotImplementedError

    def after(self, instances: List[Instance]) -> None:
        """Once after the walk: reload what was changed, close connections."""

    def run(self) -> Dict[str, Any]:
        """Walk the instances and return them in their order, with what else the phase reports."""
        handle = [from_wire(Instance, item) for item in self.params["instances"]]
        if self.params["state"] == "present":
            act, todo = self.present, [instance for instance in handle if not instance.fault]
        else:
            act, todo = self.absent, [instance for instance in handle if not instance.stuck]
        if todo:
            self.before(todo)
            try:
                done = self._walk(act, todo)
            finally:
                self.after(todo)
            by_uuid = {instance.uuid: instance for instance in done}
            handle = [by_uuid.get(instance.uuid, instance) for instance in handle]
        return {"instances": to_wire(handle)}

    def _walk(self, act: Callable[[Instance], Instance], todo: List[Instance]) -> List[Instance]:
        workers = max(1, min(self.params["max_concurrent_builds"], len(todo)))
        if workers == 1:
            return [self._one(act, instance) for instance in todo]
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(lambda instance: self._one(act, instance), todo))

    def _one(self, act: Callable[[Instance], Instance], instance: Instance) -> Instance:
        name = phase_name(type(self))
        started = now()
        field = "fault" if self.params["state"] == "present" else "stuck"
        fault = None
        trace = None
        try:
            instance = act(instance)
        except Exception as error:  # noqa: BLE001 - the one place: a neighbour must not suffer whatever it was
            trace = traceback.format_exc()
            fault = Fault(name, instance.host, describe(error), getattr(error, "code", 500))
            instance = instance.with_(**{field: fault})
        if self.check_mode:
            return instance
        event = Event(
            name if field == "fault" else f"undo_{name}",
            started,
            now(),
            "Error" if fault else "Success",
            instance.host,
            trace,
        )
        return instance.with_(events=(*instance.events, event))


def phase_name(phase: Type[Phase]) -> str:
    """The module's name: ``domain`` for the class in ``plugins/modules/domain.py``."""
    return str(getattr(phase, "name", "")) or phase.__name__.lower()


def describe(error: BaseException) -> str:
    """One line for people: the message, with the class where the message alone would not say what it is."""
    text = str(error).strip() or type(error).__name__
    return text if isinstance(error, BarestackError) else f"{type(error).__name__}: {text}"


def now() -> str:
    """The time in UTC, ISO 8601 with microseconds."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def execute(phase: Type[Phase], params: Mapping[str, Any], check_mode: bool) -> Dict[str, Any]:
    """Run a phase and return Ansible's result. A :class:`BarestackError` passes through."""
    effects = Effects(check_mode)
    result = phase(params, effects).run()
    return {"changed": effects.changed, "diff": effects.diff(), "effects": effects.names, **result}


def attempt(phase: Type[Phase], params: Mapping[str, Any], check_mode: bool) -> Dict[str, Any]:
    """Run a phase where nobody is left to report an error to: any becomes Ansible's result."""
    try:
        return execute(phase, params, check_mode)
    except BarestackError as error:
        return failure(error)
    except Exception as error:  # noqa: BLE001 - see above
        return {"failed": True, "msg": f"{phase_name(phase)}: {error}", "exception": traceback.format_exc()}


def failure(error: BarestackError) -> Dict[str, Any]:
    """Ansible's result for an error that says all there is to say."""
    return {"failed": True, "msg": str(error), "code": error.code}


def run_module(phase: Type[Phase]) -> None:
    """``main()`` of every module."""
    from ansible.module_utils.basic import AnsibleModule

    # Without no_log the host's system log would get the whole handle, with everyone's user data, from every phase.
    module = AnsibleModule(argument_spec=phase.argument_spec, supports_check_mode=True, no_log=True)
    try:
        with ends_with_reader(1), one_payload(__file__):
            result = execute(phase, module.params, module.check_mode)
    except BarestackError as error:
        result = failure(error)
    # The handle goes back once, as the result.
    arguments = {name: value for name, value in module.params.items() if name != "instances"}
    result["invocation"] = {"module_args": arguments}
    if result.pop("failed", False):
        module.fail_json(**result)
    module.exit_json(**result)


_PAYLOAD = re.compile(r"(.*/ansible_barestack\.kvm\.)[^/]+_payload_[^/]+(?=/)")
_UNPACKED_WITHIN = 60.0


@contextlib.contextmanager
def one_payload(path: str) -> Iterator[None]:
    """Remove what killed modules left of themselves; ``path`` is a file of this one's.

    Ansible unpacks a module into a directory for temporary files, and only the module's own end removes it. Here a live
    one has its directory locked; one that is being unpacked has not, and is young.
    """
    own = _PAYLOAD.match(path)
    if not own:
        yield
        return
    descriptor = os.open(own.group(), os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for other in glob.glob(f"{own.group(1)}*_payload_*"):
            with contextlib.suppress(OSError):
                _remove_dead_payload(other)
        yield
    finally:
        os.close(descriptor)


def _remove_dead_payload(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        ours = stat.S_IMODE(status.st_mode) == 0o700 and status.st_uid == os.geteuid()
        if ours and time.time() - status.st_mtime > _UNPACKED_WITHIN:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: it lives
            shutil.rmtree(path)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def ends_with_reader(descriptor: int) -> Iterator[None]:
    """SIGKILL this process as soon as no one reads ``descriptor`` (pipe, socket or terminal) any more.

    A module whose connection was lost, or whose ansible-playbook was killed, would otherwise go on unseen, beside the
    run that comes next. An SSH client learns that its reader is gone only when it has something to write: so an empty
    line every HEARTBEAT seconds, which Ansible passes over before a module's result. Its commands end with it, as
    ``host/system.py`` starts them; daemons live on.
    """
    stopped, stop = os.pipe()
    thread = threading.Thread(target=_watch, args=(descriptor, stopped), daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.close(stop)
        thread.join()
        os.close(stopped)


def _watch(descriptor: int, stopped: int) -> None:
    poll = select.poll()
    poll.register(descriptor, 0)  # errors and hang-ups are always reported
    poll.register(stopped, 0)
    while True:
        events = dict(poll.poll(HEARTBEAT * 1000))
        if stopped in events or events.get(descriptor, 0) & select.POLLNVAL:
            return
        try:
            if not events:
                os.write(descriptor, b"\n")
        except OSError:
            events[descriptor] = select.POLLERR
        if events:
            os.kill(os.getpid(), signal.SIGKILL)


def partition(instances: List[Instance]) -> Tuple[List[Instance], List[Instance]]:
    """(without a fault, with one)."""
    return [i for i in instances if not i.fault], [i for i in instances if i.fault]
