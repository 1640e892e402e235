# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""A database that does not do what it was asked: what passes is waited for, everything else is said in one line."""

from __future__ import annotations

import errno
import random
import time

from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import BarestackError, Conflict
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, OperationalError

CONFLICTS = 10
"""How often a transaction that another one got in the way of is tried in all."""
CONFLICTS_BESIDE_OTHERS = 5
"""After so many it has the records to itself: a long one would lose against short ones for ever. Eight runs that do
nothing else are through soonest with 5; without this some of their phases give up after ten tries."""
LOCK_TIMEOUT = 60
"""Seconds to wait for a lock that another process holds. Transactions take parts of a second."""
IDLE_TIMEOUT = LOCK_TIMEOUT // 2
"""Seconds after which PostgreSQL ends a transaction that its client forgot: sooner than others give up waiting."""
AWAY_TIMEOUT = 30
"""Seconds to wait for a server that restarts."""

_CONFLICT, _LOCKED, _AWAY, _REFUSED, _FAILED = "conflict", "locked", "away", "refused", "failed"

_STATES = {
    "40001": _CONFLICT,  # serialisation failure
    "40P01": _CONFLICT,  # deadlock
    "23505": _CONFLICT,  # a unique key that another transaction took meanwhile: the next try sees that row
    "55P03": _LOCKED,
    "57P01": _AWAY,  # the server shuts down, or an administrator ended the session
    "57P02": _AWAY,  # another session's crash
    "57P03": _AWAY,  # the server starts up
    "25P03": _AWAY,  # the session was idle in its transaction: this process was stopped
    "25006": _AWAY,  # read-only: a standby that is not promoted yet
    "53300": _AWAY,  # too many connections
}
"""PostgreSQL's SQLSTATE, where it is told. An error while connecting has none."""

_REFUSALS = ("authentication failed", "does not exist", "no pg_hba.conf entry", "no password", "permission denied")
"""What no waiting helps against. Of any other failure to connect the server may be about to recover."""

_FAILURES = {
    "SQLITE_FULL": "Make room on its file system",
    "SQLITE_READONLY": "Make the file, its directory and their file system writable for this user",
    "SQLITE_CANTOPEN": "Make the file and its directory writable for this user",
    "SQLITE_CORRUPT": "The file is damaged: put a backup in its place (without the old -wal and -shm files)",
    "SQLITE_NOTADB": "The file is damaged, or no records: put a backup in its place, or correct records_url",
    "SQLITE_IOERR": "See whether its file system is full or its disk is failing",
    "53100": "Make room on the server's disk",
    "42501": "Give the role the rights to the database's tables",
}
"""What to do, by the beginning of SQLite's error name or PostgreSQL's SQLSTATE."""

_UNOPENED = {
    errno.ENOENT: "Run playbooks/prepare_hosts.yml first, or set records_url",
    errno.EISDIR: "records_url has to name a file",
    errno.ENOSPC: "Make room on its file system",
    errno.EROFS: "Make its file system writable, or set records_url",
}


class Overtaken(Conflict):
    """What a decision was based on is no longer so: the transaction is tried again, as after any conflict."""


class Patience:
    """How often, and how long, one piece of work is tried."""

    def __init__(self, url: URL) -> None:
        self._name = shown(url)
        self._locked_until = time.monotonic() + LOCK_TIMEOUT
        self._away_until = 0.0
        self._conflicts = 0
        self._absences = 0

    @property
    def alone(self) -> bool:
        """Whether the next try shuts the others out."""
        return self._conflicts >= CONFLICTS_BESIDE_OTHERS

    def wait(self, error: DBAPIError, in_doubt: bool = False) -> None:
        """Sleep until the next try may get further; BarestackError where none will.

        ``in_doubt`` says that a COMMIT was sent and what became of it is not known.
        """
        kind = _kind(error)
        if kind == _CONFLICT:
            self._conflicts += 1
            if self._conflicts < CONFLICTS:
                return _pause(0.0, min(0.5, 0.01 * 2.0**self._conflicts))
        if kind == _LOCKED and time.monotonic() < self._locked_until:
            return _pause(0.0, 0.1)
        if kind == _AWAY:
            self._absences += 1
            now = time.monotonic()
            self._away_until = self._away_until or now + AWAY_TIMEOUT
            if now < self._away_until:
                pause = min(2.0, 0.1 * 2.0**self._absences)
                return _pause(pause / 2, min(pause, self._away_until - now))
        raise BarestackError(self._complaint(kind, error, in_doubt)) from error

    def overtaken(self, error: Overtaken) -> None:
        """Sleep until the next try, as after another conflict; raise ``error`` once that has been enough."""
        self._conflicts += 1
        if self._conflicts >= CONFLICTS:
            raise error
        _pause(0.0, min(0.5, 0.01 * 2.0**self._conflicts))

    def _complaint(self, kind: str, error: DBAPIError, in_doubt: bool) -> str:
        cause = " ".join(str(error.orig).split())
        outcome = (
            "Whether the last change was written is not known; the next run finds out"
            if in_doubt
            else "This phase wrote nothing"
        )
        if kind == _AWAY:
            return (
                f"The records ({self._name}) have not answered for {AWAY_TIMEOUT} s: {cause}. {outcome}. Start the "
                "database server, or correct records_url; then run again: it goes on from what is recorded."
            )
        if kind == _REFUSED:
            return (
                f"The records ({self._name}) cannot be reached: {cause}. {outcome}. Correct records_url, or the "
                "server's roles and databases."
            )
        if kind == _LOCKED:
            return (
                f"The records ({self._name}) are locked: {cause}. Another process has held the lock for "
                f"{LOCK_TIMEOUT} s. {outcome}. End that process, then run again."
            )
        return f"The records ({self._name}) failed: {cause}. {outcome}. {_advice(error)}."


def limits() -> str:
    """PostgreSQL's statements that limit how long the transaction waits for others, and others for it."""
    return (
        f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}s'; SET LOCAL idle_in_transaction_session_timeout = '{IDLE_TIMEOUT}s'"
    )


def unopened(url: URL, error: OSError) -> BarestackError:
    """The error for a file that cannot be opened for writing."""
    what = _UNOPENED.get(error.errno or 0, "Make it writable for this user, or set records_url")
    return BarestackError(f"The records ({shown(url)}) cannot be opened: {error}. {what}.")


def shown(url: URL) -> str:
    """The URL for people: without passwords, which may stand in its query too."""
    secret = [key for key in url.query if "password" in key]
    return url.difference_update_query(secret)._replace(password=None).render_as_string(hide_password=False)


def _kind(error: DBAPIError) -> str:
    state = getattr(error.orig, "sqlstate", None) or ""
    name = getattr(error.orig, "sqlite_errorname", "")
    if name:
        return _LOCKED if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")) else _FAILED
    if state:
        return _STATES.get(state, _AWAY if state.startswith("08") or error.connection_invalidated else _FAILED)
    text = str(error.orig)
    if any(refusal in text for refusal in _REFUSALS):
        return _REFUSED
    return _AWAY if error.connection_invalidated or isinstance(error, OperationalError) else _FAILED


def _advice(error: DBAPIError) -> str:
    name = getattr(error.orig, "sqlite_errorname", None) or getattr(error.orig, "sqlstate", None) or ""
    found = next((advice for key, advice in _FAILURES.items() if name.startswith(key)), "Mend that")
    return f"{found}, then run again"


def _pause(least: float, most: float) -> None:
    """A random time between the two, so that those who collided do not meet again."""
    time.sleep(random.SystemRandom().uniform(min(least, most), most))
