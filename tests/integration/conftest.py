# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""A short-lived directory, and this machine as a host that is reached over SSH."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def directory() -> Iterator[Path]:
    """Not pytest's own: a socket's path has to be short."""
    with tempfile.TemporaryDirectory(prefix="barestack-") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def sshd(directory: Path) -> Iterator[tuple[int, Path]]:
    """(port, private key) of an sshd of the tests' own; ``known_hosts`` lies beside the key."""
    with ssh_server(directory / "sshd") as found:
        yield found


@contextlib.contextmanager
def ssh_server(directory: Path) -> Iterator[tuple[int, Path]]:
    """(port, private key) of an sshd on 127.0.0.1 that knows one key and no password."""
    directory.mkdir(mode=0o700)
    for name in ("host_key", "user_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
        subprocess.run(command, check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    host_key = (directory / "host_key.pub").read_text().split(" ", 2)
    (directory / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key[0]} {host_key[1]}\n")
    (directory / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\n"
        f"HostKey {directory}/host_key\n"
        f"AuthorizedKeysFile {directory}/user_key.pub\n"
        "AuthenticationMethods publickey\n"
        "PermitRootLogin prohibit-password\n"
        "StrictModes no\n"  # /tmp is everyone's
        "UsePAM yes\n"
        "PidFile none\n"
        "Subsystem sftp internal-sftp\n"
    )
    with run_directory(), (directory / "log").open("w") as log:
        server = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", str(directory / "sshd_config")], stderr=log)
        try:
            wait_for_banner(port, server, directory / "log")
            yield port, directory / "user_key"
        finally:
            server.terminate()
            server.wait()


@contextlib.contextmanager
def run_directory() -> Iterator[None]:
    """sshd's empty root, which the system's own service would make."""
    path = Path("/run/sshd")
    made = not path.exists()
    path.mkdir(mode=0o755, exist_ok=True)
    try:
        yield
    finally:
        if made:
            path.rmdir()


def wait_for_banner(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as connection:
            if connection.recv(4) == b"SSH-":
                return
        time.sleep(0.05)
    raise AssertionError(f"sshd did not answer on port {port}: {log.read_text()}")
