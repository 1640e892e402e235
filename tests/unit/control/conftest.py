# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""A database of each kind: SQLite in a file, and a PostgreSQL server that the tests start and stop."""

from __future__ import annotations

import contextlib
import re
import select
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgresql_server import Server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The server that the tests share: it runs all the time."""
    server = Server()
    try:
        server.make()
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def postgresql(server: Server) -> str:
    """The shared server's URL without its database's name."""
    return server.url("{}")


@pytest.fixture(scope="module")
def _unsteady() -> Iterator[Server]:
    server = Server()
    try:
        server.make()
        yield server
    finally:
        server.remove()


@pytest.fixture
def unsteady_server(_unsteady: Server) -> Server:
    """A server that a test may stop; running at its beginning."""
    _unsteady.stop()
    _unsteady.start()
    return _unsteady


class Proxy:
    """A socket before a PostgreSQL server's, that loses a message of the next transaction that writes.

    ``lose``: ``commit``, the client's COMMIT and with it the connection; ``commit, unnoticed``, so that the server
    does not notice that its client is gone; ``answer``, what the server says to a COMMIT that it carried out.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self.directory = Path(tempfile.mkdtemp(prefix="barestack-proxy-"))
        self.lose: str | None = None
        self.lost = 0
        self.away = False
        """Whether the server is away from the next lost message on."""
        self._kept: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.directory / ".s.PGSQL.5432"))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, name: str) -> str:
        """records_url through this proxy."""
        return self._server.url(name, self.directory)

    def close(self) -> None:
        """No more connections; those that the server took for living ones end."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._kept:
            connection.close()
        shutil.rmtree(self.directory)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.away and not self.lose:
                    client.close()
                    continue
                upstream = socket.socket(socket.AF_UNIX)
                upstream.connect(str(self._server.directory / ".s.PGSQL.5432"))
                threading.Thread(target=self._serve, args=(client, upstream), daemon=True).start()

    def _serve(self, client: socket.socket, upstream: socket.socket) -> None:
        """One connection: a request and its answers by turns, as psycopg speaks."""
        writes = False
        with contextlib.suppress(OSError):
            while True:
                ready, _, _ = select.select([client, upstream], [], [])
                for source, sink in ((client, upstream), (upstream, client)):
                    if source in ready:
                        data = source.recv(1 << 16)
                        if not data:
                            client.close()
                            upstream.close()
                            return
                        writes = writes or (source is client and bool(_WRITE.search(data)))
                        if source is client and writes and b"COMMIT" in data and self.lose:
                            self._lose(data, client, upstream)
                            return
                        sink.sendall(data)

    def _lose(self, data: bytes, client: socket.socket, upstream: socket.socket) -> None:
        what, self.lose = self.lose, None
        if what == "answer":
            upstream.sendall(data)
            while b"COMMIT" not in upstream.recv(1 << 16):
                pass
        if what == "commit, unnoticed":
            self._kept.append(upstream)
        else:
            upstream.close()
        self.lost += 1
        client.close()


_WRITE = re.compile(rb"INSERT INTO|UPDATE |DELETE FROM")


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    """Before the shared server."""
    proxy = Proxy(server)
    yield proxy
    proxy.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def records_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Records that are not there yet, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/records.db"
    server: Server = request.getfixturevalue("server")
    return server.url(server.database())
