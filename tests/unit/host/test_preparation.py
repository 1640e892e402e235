# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What makes a host ready, tried on this one: its kernel, its sockets, its daemons."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.host import preparation
from ansible_collections.barestack.kvm.plugins.module_utils.host.preparation import KernelSettings
from ansible_collections.barestack.kvm.plugins.module_utils.model.effects import Effects
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import HostError

ROOT = Path(__file__).parents[3]
DAEMON = """#!{python}
import os, socket, sys
assert sys.argv[1:] == ["-d"]
server = socket.socket(socket.AF_UNIX)
server.bind("{socket}")
server.listen()
if os.fork():
    os._exit(0)
os.setsid()
for descriptor in (0, 1, 2):
    os.close(descriptor)
open("{pid}", "w").write(str(os.getpid()))
while True:
    server.accept()
"""


def test_a_socket_file_without_a_listener_does_not_answer(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    assert not preparation.answers(path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        assert preparation.answers(path)
    assert os.path.exists(path) and not preparation.answers(path)


def test_a_daemon_is_started_once(tmp_path: Path) -> None:
    script, path, pid = tmp_path / "daemon", tmp_path / "sock", tmp_path / "pid"
    script.write_text(DAEMON.format(python=sys.executable, socket=path, pid=pid))
    script.chmod(0o755)
    planned, started, again = Effects(check_mode=True), Effects(check_mode=False), Effects(check_mode=False)
    try:
        preparation.start_daemon(planned, str(script), str(path))
        assert planned.names == [f"host.daemon {script}"] and not path.exists()
        preparation.start_daemon(started, str(script), str(path))
        assert started.names == planned.names
        preparation.start_daemon(again, str(script), str(path))
        assert again.names == []
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.kill(int(pid.read_text()), signal.SIGTERM)


def test_a_daemon_that_dies_at_once_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="true was started and does not answer"):
        preparation.start_daemon(Effects(check_mode=False), "true", str(tmp_path / "sock"))


def test_missing_commands_and_libraries_are_named() -> None:
    assert preparation.missing_commands(["sh", "no-such-command|sh"]) == []
    assert preparation.missing_commands(["no-such-command|nor-this"]) == [
        "the command no-such-command or nor-this is not installed"
    ]
    assert preparation.missing_libraries(["json", "no_such_library"]) == ["this Python has no no_such_library library"]


def test_missing_space_looks_at_the_nearest_directory(tmp_path: Path) -> None:
    assert preparation.missing_space(str(tmp_path / "not" / "yet"), 0) == []
    (problem,) = preparation.missing_space(str(tmp_path / "not" / "yet"), 1e9)
    assert problem.startswith(f"{tmp_path} has ") and problem.endswith("GiB free, 1e+09 GiB are wanted")


def test_trying_the_kernel_leaves_nothing_behind() -> None:
    before = subprocess.check_output(["ip", "-o", "link"], text=True)
    assert preparation.missing_kernel_features() == []
    assert "check0" not in subprocess.check_output(["ip", "-o", "link"], text=True) and "check0" not in before
    assert "check0" not in subprocess.check_output(["nft", "list", "tables"], text=True)


def test_kernel_settings_in_check_mode_write_nothing() -> None:
    effects = Effects(check_mode=True)
    KernelSettings("barestack-test", ["no_such_module"], {"net.no_such.setting": "1"}).apply(effects)
    assert effects.names == [
        "host.settings /etc/modules-load.d/barestack-test.conf",
        "host.settings /etc/sysctl.d/60-barestack-test.conf",
        "host.sysctl net.no_such.setting",
    ]
    assert not os.path.exists("/etc/sysctl.d/60-barestack-test.conf")


IN_NAMESPACES = f"""
import sys
sys.path.insert(0, {str(ROOT / "collections")!r})
from ansible_collections.barestack.kvm.plugins.module_utils.host.preparation import KernelSettings
from ansible_collections.barestack.kvm.plugins.module_utils.model.effects import Effects
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import HostError
"""


def in_namespaces(script: str) -> list[str]:
    """What the script prints, where this machine's files and settings stay as they are."""
    hide = (
        "mount -t tmpfs none /etc/modules-load.d; mount -t tmpfs none /etc/sysctl.d; sysctl -qw net.ipv4.ip_forward=0"
    )
    shell = ["sh", "-ec", f'{hide}; exec "$@"', "sh"]
    command = ["unshare", "--net", "--mount", *shell, sys.executable, "-c", IN_NAMESPACES + script]
    return subprocess.check_output(command, text=True).splitlines()


def test_kernel_settings_are_kept_and_set_once() -> None:
    lines = in_namespaces("""
settings = KernelSettings("x", ["some_module"], {"net.ipv4.ip_forward": "1", "net/ipv4/conf/lo/forwarding": "1"})
for _ in range(2):
    effects = Effects(check_mode=False)
    settings.apply(effects)
    print(*effects.names, sep=", ")
for path in ("/etc/modules-load.d/x.conf", "/etc/sysctl.d/60-x.conf", "/proc/sys/net/ipv4/ip_forward"):
    print(open(path).read(), end="")
""")
    files = "host.settings /etc/modules-load.d/x.conf, host.settings /etc/sysctl.d/60-x.conf"
    assert lines == [
        f"{files}, host.sysctl net.ipv4.ip_forward",
        "",
        "some_module",
        "net.ipv4.ip_forward = 1",
        "net/ipv4/conf/lo/forwarding = 1",
        "1",
    ]


def test_a_setting_that_the_kernel_cannot_have_is_an_error() -> None:
    (line,) = in_namespaces("""
try:
    KernelSettings("x", [], {"net.no_such.setting": "1"}).apply(Effects(check_mode=False))
except HostError as error:
    print(error)
""")
    assert line.startswith("this kernel has no setting net.no_such.setting")
