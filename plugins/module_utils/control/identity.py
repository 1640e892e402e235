# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Who asks: Keystone's part of the flow. The only importer of cryptography and argon2.

A provider checks credentials and issues and validates tokens; :func:`choose_provider` is the one place that knows which
there are. The local one takes users, projects and roles from the catalogue and signs Fernet tokens as Keystone does.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import json
import os
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Mapping, Protocol

from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog import Catalog
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog_build import ROLES
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog_objects import Project, User
from ansible_collections.barestack.kvm.plugins.module_utils.control.credentials import (
    check_domains,
    named,
    needed,
    read_credentials,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.keys import KeyRepository
from ansible_collections.barestack.kvm.plugins.module_utils.model.effects import Effects
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import (
    BarestackError,
    Forbidden,
    InvalidRequest,
    Unauthorized,
)

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet

KEY_LIFETIME = 30 * 86400
DENIED = "The request you have made requires authentication: no such user, wrong password or disabled user. (HTTP 401)"
# Verified, and ignored, for a user who does not exist: the answer takes as long as for one who does.
_NOBODY = "$argon2id$v=19$m=65536,t=3,p=4$eobz+p9E6VB6TvSeBkq1Aw$1TLKFkc7+kEmxFLftkbfIQh4DoXd+da/cze8mSXkqxs"
# Signs in check mode where there are no keys yet; see LocalProvider.
_REHEARSAL_KEY = base64.urlsafe_b64encode(bytes(32))


@dataclass(frozen=True)
class Identity:
    """Who asks, in which project. ``roles`` holds the implied ones too; ``audit_id`` is the token's: one a run."""

    user_id: str
    user_name: str
    project_id: str
    project_name: str
    roles: tuple[str, ...]
    audit_id: str

    def require(self, role: str) -> None:
        """Forbidden unless the identity has the role: admin implies member, member implies reader."""
        if role not in self.roles:
            raise Forbidden(
                f"User {self.user_name} needs the role {role} in project {self.project_name} for this, "
                f"and has {', '.join(self.roles) or 'none'}. (HTTP 403)"
            )

    def may_touch(self, project_id: str) -> bool:
        """Whether this project's servers are theirs to see and change: their own project's, or anyone's as admin."""
        return project_id == self.project_id or "admin" in self.roles


@dataclass(frozen=True)
class Token:
    """A project-scoped token. Times are ISO 8601 in UTC."""

    secret: str = field(repr=False)
    identity: Identity
    issued_at: str
    expires_at: str


class Provider(Protocol):
    """An identity service."""

    def authenticate(self, credentials: Mapping[str, str], lifetime: int) -> Token:
        """A token for correct credentials, valid for ``lifetime`` seconds; Unauthorized for others."""

    def validate(self, token: str) -> Identity:
        """Whose token it is; Unauthorized where it is expired, not ours, or its user may no longer use it."""


class LocalProvider:
    """Users, projects and roles of the catalogue; keys of the control host.

    Keys are created, and rotated once the primary one is older than ``key_lifetime`` seconds, when a token is issued;
    that is an effect, so not in check mode. A control host without keys has never issued a token: only there, and only
    in check mode, tokens are signed and accepted under a key that is no secret, so that ``--check`` on a fresh site
    goes through every phase and leaves nothing behind. Passwords and roles are checked all the same.
    """

    def __init__(
        self,
        catalog: Catalog,
        keys: KeyRepository,
        effects: Effects,
        now: float | None = None,
        key_lifetime: int = KEY_LIFETIME,
    ) -> None:
        self._catalog = catalog
        self._keys = keys
        self._effects = effects
        self._now = time.time() if now is None else now
        self._key_lifetime = key_lifetime

    def authenticate(self, credentials: Mapping[str, str], lifetime: int) -> Token:
        """As :meth:`Provider.authenticate`."""
        user = self._verified_user(credentials)
        audit_id = base64.urlsafe_b64encode(os.urandom(16)).rstrip(b"=").decode()
        identity = self._scoped(user, self._wanted_project(user, credentials), audit_id)
        self._prepare_keys()
        issued_at, expires_at = _iso(self._now), _iso(self._now + lifetime)
        payload = {
            **{key: getattr(identity, key) for key in ("user_id", "user_name", "project_id", "project_name")},
            "roles": list(identity.roles),
            "issued_at": issued_at,
            "expires_at": expires_at,
            "audit_id": audit_id,
        }
        secret = self._sealed(payload, credentials["password"])
        return Token(secret, identity, issued_at, expires_at)

    def validate(self, token: str) -> Identity:
        """As :meth:`Provider.validate`; the catalogue's users are asked again."""
        payload = self._opened(token)
        if self._now >= datetime.datetime.fromisoformat(payload["expires_at"].replace("Z", "+00:00")).timestamp():
            raise Unauthorized(f"The token expired at {payload['expires_at']}: get a new one. (HTTP 401)")
        user = next((item for item in self._catalog.users if item.id == payload["user_id"]), None)
        project = next((item for item in self._catalog.projects if item.id == payload["project_id"]), None)
        if user is None or not user.enabled or project is None:
            what = f"project {payload['project_name']}" if user and user.enabled else f"user {payload['user_name']}"
            raise Unauthorized(f"The token is no longer valid: {what} does not exist or is disabled. (HTTP 401)")
        identity = self._scoped(user, project, payload["audit_id"])
        return replace(identity, roles=tuple(role for role in identity.roles if role in payload["roles"]))

    def _verified_user(self, credentials: Mapping[str, str]) -> User:
        password = needed(credentials, "password", "password")
        needed(credentials, "username", "user_id")
        user = next((user for user in self._catalog.users if named(user, credentials, "username", "user_id")), None)
        stand_in = self._catalog.users[0].password_hash if self._catalog.users else _NOBODY
        matches = _password_matches(password, user.password_hash if user else stand_in)
        if user is None or not matches or not user.enabled:
            raise Unauthorized(DENIED)
        return user

    def _wanted_project(self, user: User, credentials: Mapping[str, str]) -> Project:
        wanted = needed(credentials, "project_name", "project_id")
        for project in self._catalog.projects:
            if named(project, credentials, "project_name", "project_id"):
                return project
        raise Unauthorized(f"User {user.name} has no access to project {wanted}. (HTTP 401)")

    def _scoped(self, user: User, project: Project, audit_id: str) -> Identity:
        """The identity; Unauthorized without a role in the project, as Keystone answers."""
        highest = max((ROLES.index(role) for role in user.roles.get(project.id, ())), default=-1)
        if highest < 0:
            raise Unauthorized(f"User {user.name} has no access to project {project.name}. (HTTP 401)")
        if not project.enabled:
            raise Unauthorized(f"Project {project.name} is disabled. (HTTP 401)")
        roles = tuple(reversed(ROLES[: highest + 1]))
        return Identity(user.id, user.name, project.id, project.name, roles, audit_id)

    def _prepare_keys(self) -> None:
        directory = self._keys.directory
        if not self._keys.usable():
            self._effects.apply("identity.keys", directory, self._keys.create, after="a primary and a staged key\n")
        elif self._keys.age(self._now) > self._key_lifetime:
            self._effects.apply(
                "identity.keys",
                directory,
                lambda: self._keys.rotate_if_older(self._key_lifetime),
                before=f"a primary key older than {self._key_lifetime} s\n",
                after="the staged key is primary\n",
            )

    def _sealed(self, payload: Mapping[str, Any], password: str) -> str:
        """The payload as a Fernet token, without Fernet's padding, as Keystone writes it.

        Ansible masks the password wherever it finds it in a result, so a token must not happen to contain it.
        """
        fernet, text = self._fernet(), json.dumps(payload).encode()
        for _ in range(100):
            secret = fernet.encrypt(text).rstrip(b"=").decode()
            if password not in secret:
                return secret
        raise InvalidRequest(f"User {payload['user_name']} has a password of one character or two: choose a longer one")

    def _fernet(self) -> MultiFernet:
        keys = self._keys.keys()
        if not keys and self._effects.check_mode:
            keys = [_REHEARSAL_KEY]
        if not keys:
            raise Unauthorized(f"Not a valid token: {self._keys.directory} has no keys on this host. (HTTP 401)")
        try:
            from cryptography.fernet import Fernet, MultiFernet
        except ImportError:
            raise _missing("cryptography") from None
        try:
            return MultiFernet([Fernet(key) for key in keys])
        except (ValueError, binascii.Error):
            raise BarestackError(f"{self._keys.directory} holds a file that is no Fernet key: remove it") from None

    def _opened(self, token: str) -> dict[str, Any]:
        fernet = self._fernet()
        from cryptography.fernet import InvalidToken

        try:
            padded = token + "=" * (-len(token) % 4)
            payload: dict[str, Any] = json.loads(fernet.decrypt(padded.encode()))
        except (InvalidToken, ValueError):
            raise Unauthorized(
                "Not a valid token: it was changed, or signed by a key that this host does not have. (HTTP 401)"
            ) from None
        return payload


def choose_provider(auth_url: str, catalog: Catalog, keys: KeyRepository, effects: Effects, **options: Any) -> Provider:
    """The provider for an ``auth_url``; without one the local identity, which takes ``options``."""
    if auth_url:
        raise InvalidRequest(
            "auth_url is set: the Keystone provider is not there yet; leave it out for the local identity"
        )
    return LocalProvider(catalog, keys, effects, **options)


def authenticate(  # noqa: PLR0913 - the four that callers give, and what tests set
    auth: Mapping[str, Any],
    catalog: Catalog,
    keys_directory: str,
    lifetime: int,
    *,
    effects: Effects | None = None,
    environ: Mapping[str, str] = os.environ,
    **options: Any,
) -> Token:
    """A token for ``auth`` (openstacksdk's keys; what is missing comes from ``OS_*`` in ``environ``).

    InvalidRequest for a mapping that cannot be used, Unauthorized for one that is wrong. ``options``: ``now`` and
    ``key_lifetime`` of :class:`LocalProvider`.
    """
    credentials = read_credentials(auth, environ)
    provider = choose_provider(
        credentials.get("auth_url", ""), catalog, KeyRepository(keys_directory), effects or Effects(False), **options
    )
    check_domains(credentials)
    return provider.authenticate(credentials, lifetime)


def validate(
    token: str, catalog: Catalog, keys_directory: str, *, check_mode: bool = False, now: float | None = None
) -> Identity:
    """Whose token it is; Unauthorized where it is expired, changed, unknown or withdrawn."""
    return choose_provider("", catalog, KeyRepository(keys_directory), Effects(check_mode), now=now).validate(token)


def rotate_keys(directory: str, max_active_keys: int = 3) -> None:
    """``keystone-manage fernet_rotate``."""
    KeyRepository(directory).rotate(max_active_keys)


def _password_matches(password: str, password_hash: str) -> bool:
    try:
        import argon2
    except ImportError:
        raise _missing("argon2-cffi") from None
    try:
        return argon2.PasswordHasher().verify(password_hash, password)
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
        return False


def _missing(library: str) -> BarestackError:
    return BarestackError(
        f"The Python library {library} is not installed for this control host's Python: pip install it"
    )


def _iso(moment: float) -> str:
    return datetime.datetime.fromtimestamp(moment, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
