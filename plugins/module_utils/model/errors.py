# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What can go wrong, by whose fault it is.

Every error that a user may see is one of these. The message names the object, the value and what is
allowed; ``code`` is the status that OpenStack's APIs would answer with.
"""

from __future__ import annotations


class BarestackError(Exception):
    """Base of all; libraries raise it, ``run_module`` turns it into one ``fail_json``."""

    code = 500


class InvalidRequest(BarestackError):
    """The request or the catalogue is wrong; nothing was changed."""

    code = 400


class Unauthorized(BarestackError):
    """Wrong credentials, or a token that is expired, tampered with or unknown."""

    code = 401


class Forbidden(BarestackError):
    """The token is good, but its roles or its project do not allow this."""

    code = 403


class NotFound(BarestackError):
    """The named object does not exist, or is not visible to this project."""

    code = 404


class Conflict(BarestackError):
    """The object's state does not allow this: a name or an address in use, an immutable property."""

    code = 409


class QuotaExceeded(Forbidden):
    """The project's quota does not hold what was asked for."""


class NoValidHost(BarestackError):
    """No compute host passed every filter and had room; the message says why each was removed."""


class HostError(BarestackError):
    """Something on a compute host failed: a command, libvirt, the kernel, a file system."""


class Timeout(HostError):
    """A wait reached its deadline; the message carries the last state seen."""
