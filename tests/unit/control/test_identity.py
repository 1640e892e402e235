# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Credentials, tokens, keys and roles, with the real libraries on real files."""

from __future__ import annotations

import base64
import json
import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

import argon2
import pytest
import yaml
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog import Catalog
from ansible_collections.barestack.kvm.plugins.module_utils.control.credentials import read_credentials
from ansible_collections.barestack.kvm.plugins.module_utils.control.identity import (
    DENIED,
    Identity,
    Token,
    authenticate,
    rotate_keys,
    validate,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.keys import KeyRepository
from ansible_collections.barestack.kvm.plugins.module_utils.control.session import CONTROL_SPEC, identify
from ansible_collections.barestack.kvm.plugins.module_utils.model.effects import Effects
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import (
    BarestackError,
    Forbidden,
    InvalidRequest,
    Unauthorized,
)
from ansible_collections.barestack.kvm.plugins.module_utils.phase import execute
from cryptography.fernet import Fernet

PASSWORD = "hush-hush"
QUICK = argon2.PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)
HASH = QUICK.hash(PASSWORD)
NOW = 1_700_000_000.0
AUTH = {"username": "alice", "password": PASSWORD, "project_name": "demo"}


def site() -> dict[str, Any]:
    return {
        "projects": [{"name": "demo"}, {"name": "other"}, {"name": "closed", "enabled": False}],
        "users": [
            {"name": "alice", "password_hash": HASH, "roles": {"demo": "member", "closed": "member"}},
            {"name": "root", "password_hash": HASH, "roles": {"demo": "admin"}},
            {"name": "guest", "password_hash": HASH, "roles": {"demo": ["reader"]}},
            {"name": "gone", "password_hash": HASH, "roles": {"demo": "member"}, "enabled": False},
        ],
    }


@pytest.fixture
def catalog() -> Catalog:
    return Catalog.load(site())


@pytest.fixture
def keys(tmp_path: Path) -> str:
    return str(tmp_path / "control" / "keys")


def token(catalog: Catalog, keys: str, lifetime: int = 60, **options: Any) -> Token:
    auth = {**AUTH, **options.pop("auth", {})}
    return authenticate(auth, catalog, keys, lifetime, environ={}, **options)


def numbers(keys: str) -> list[int]:
    return sorted(int(name) for name in os.listdir(keys) if name.isdigit())


def test_a_token_says_who_asks(catalog: Catalog, keys: str) -> None:
    issued = token(catalog, keys)
    identity = validate(issued.secret, catalog, keys)
    assert identity == issued.identity
    assert (identity.user_name, identity.project_name) == ("alice", "demo")
    assert (identity.user_id, identity.project_id) == (catalog.user("alice").id, catalog.project("demo").id)
    assert identity.roles == ("member", "reader")


def test_ids_serve_as_well_as_names(catalog: Catalog, keys: str) -> None:
    ids = {"user_id": catalog.user("alice").id, "project_id": catalog.project("demo").id, "password": PASSWORD}
    assert authenticate(ids, catalog, keys, 60, environ={}).identity.user_name == "alice"


@pytest.mark.parametrize(
    "auth",
    [
        {"password": "wrong"},
        {"username": "nobody"},
        {"username": "gone"},
        {"username": "alice", "user_id": "another"},
    ],
)
def test_denied_without_saying_why(auth: dict[str, str], catalog: Catalog, keys: str) -> None:
    with pytest.raises(Unauthorized) as caught:
        token(catalog, keys, auth=auth)
    assert str(caught.value) == DENIED
    assert caught.value.code == 401
    assert not os.path.exists(keys), "a wrong password made keys"


def test_a_site_without_users_denies(keys: str) -> None:
    with pytest.raises(Unauthorized):
        token(Catalog(), keys)


def test_an_unknown_user_takes_as_long_as_a_wrong_password(keys: str) -> None:
    slow = argon2.PasswordHasher(time_cost=4, memory_cost=65536, parallelism=1).hash(PASSWORD)
    data = site()
    for user in data["users"]:
        user["password_hash"] = slow
    catalog = Catalog.load(data)

    def duration(auth: dict[str, str]) -> float:
        started = time.process_time()
        with pytest.raises(Unauthorized):
            token(catalog, keys, auth=auth)
        return time.process_time() - started

    known = min(duration({"password": "wrong"}) for _ in range(3))
    unknown = min(duration({"username": "nobody"}) for _ in range(3))
    assert 0.5 < unknown / known < 2


@pytest.mark.parametrize(
    ("auth", "message"),
    [
        ({"project_name": "other"}, "User alice has no access to project other. (HTTP 401)"),
        ({"project_name": "nowhere"}, "User alice has no access to project nowhere. (HTTP 401)"),
        ({"project_name": "closed"}, "Project closed is disabled. (HTTP 401)"),
    ],
)
def test_no_access_to_the_project(auth: dict[str, str], message: str, catalog: Catalog, keys: str) -> None:
    with pytest.raises(Unauthorized) as caught:
        token(catalog, keys, auth=auth)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("auth", "message"),
    [
        ({"password": None}, "auth.password is missing: give it, or set OS_PASSWORD"),
        ({"username": None}, "auth.username or user_id is missing: give it, or set OS_USERNAME"),
        ({"project_name": None}, "auth.project_name or project_id is missing: give it, or set OS_PROJECT_NAME"),
        (
            {"user_domain_name": "Users"},
            "auth.user_domain_name is 'Users': the local identity has one domain, Default",
        ),
        (
            {"auth_url": "https://keystone.example:5000/v3"},
            "auth_url is set: the Keystone provider is not there yet; leave it out for the local identity",
        ),
        (
            {"token": "abc"},
            "auth.token is not supported. Allowed: auth_url, username, user_id, password, project_name, project_id, "
            "user_domain_name, user_domain_id, project_domain_name, project_domain_id",
        ),
    ],
)
def test_credentials_that_cannot_be_used(auth: dict[str, str], message: str, catalog: Catalog, keys: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        token(catalog, keys, auth=auth)
    assert str(caught.value) == message


def test_domains_of_an_openrc_file(catalog: Catalog, keys: str) -> None:
    openrc = {
        "OS_USERNAME": "alice",
        "OS_PASSWORD": PASSWORD,
        "OS_PROJECT_NAME": "demo",
        "OS_USER_DOMAIN_NAME": "Default",
        "OS_PROJECT_DOMAIN_ID": "default",
    }
    assert authenticate({}, catalog, keys, 60, environ=openrc).identity.user_name == "alice"


def test_the_environment_fills_only_what_is_missing() -> None:
    environ = {"OS_USERNAME": "e", "OS_PROJECT_ID": "e", "OS_PASSWORD": "e", "OS_AUTH_URL": "e", "HOME": "e"}
    auth = {"username": "a", "project_name": "a", "auth_url": "", "user_id": None}
    assert read_credentials(auth, environ) == {"username": "a", "project_name": "a", "auth_url": "", "password": "e"}


def test_expiry(catalog: Catalog, keys: str) -> None:
    issued = token(catalog, keys, 60, now=NOW)
    assert issued.expires_at == "2023-11-14T22:14:20.000000Z"
    assert validate(issued.secret, catalog, keys, now=NOW + 59.9)
    with pytest.raises(Unauthorized) as caught:
        validate(issued.secret, catalog, keys, now=NOW + 60)
    assert str(caught.value) == "The token expired at 2023-11-14T22:14:20.000000Z: get a new one. (HTTP 401)"


def test_a_token_that_was_changed(catalog: Catalog, keys: str) -> None:
    secret = token(catalog, keys).secret
    raw = bytearray(base64.urlsafe_b64decode(secret + "=" * (-len(secret) % 4)))
    for position in (0, 5, 12, 40, len(raw) - 1):
        changed = bytes(raw[:position]) + bytes([raw[position] ^ 1]) + bytes(raw[position + 1 :])
        with pytest.raises(Unauthorized, match="^Not a valid token"):
            validate(base64.urlsafe_b64encode(changed).decode(), catalog, keys)


@pytest.mark.parametrize("secret", ["", "x", "gAAAAA", "\u00e4\u00f6", "a" * 10_000])
def test_what_is_no_token(secret: str, catalog: Catalog, keys: str) -> None:
    token(catalog, keys)
    with pytest.raises(Unauthorized, match="^Not a valid token"):
        validate(secret, catalog, keys)


def test_a_token_of_another_site(catalog: Catalog, keys: str, tmp_path: Path) -> None:
    token(catalog, keys)
    with pytest.raises(Unauthorized, match="^Not a valid token"):
        validate(token(catalog, str(tmp_path / "elsewhere")).secret, catalog, keys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["users"].pop(0), "The token is no longer valid: user alice does not exist or is disabled."),
        (
            lambda d: d["users"][0].update(enabled=False),
            "The token is no longer valid: user alice does not exist or is disabled.",
        ),
        (lambda d: d["users"][0].update(roles={"closed": "member"}), "User alice has no access to project demo."),
        (lambda d: d["projects"][0].update(enabled=False), "Project demo is disabled."),
    ],
)
def test_what_is_withdrawn_counts_at_once(change: Any, message: str, catalog: Catalog, keys: str) -> None:
    issued = token(catalog, keys)
    data = site()
    change(data)
    with pytest.raises(Unauthorized) as caught:
        validate(issued.secret, Catalog.load(data), keys)
    assert str(caught.value) == f"{message} (HTTP 401)"


def test_roles_shrink_with_the_catalogue_and_grow_with_a_new_token(catalog: Catalog, keys: str) -> None:
    issued = token(catalog, keys)
    data = site()
    data["users"][0]["roles"]["demo"] = "reader"
    assert validate(issued.secret, Catalog.load(data), keys).roles == ("reader",)
    data["users"][0]["roles"]["demo"] = "admin"
    assert validate(issued.secret, Catalog.load(data), keys).roles == ("member", "reader")


@pytest.mark.parametrize(
    ("user", "roles"),
    [("root", ("admin", "member", "reader")), ("alice", ("member", "reader")), ("guest", ("reader",))],
)
def test_implied_roles(user: str, roles: tuple[str, ...], catalog: Catalog, keys: str) -> None:
    identity = token(catalog, keys, auth={"username": user}).identity
    assert identity.roles == roles
    for role in ("reader", "member", "admin"):
        if role in roles:
            identity.require(role)
        else:
            with pytest.raises(Forbidden) as caught:
                identity.require(role)
            assert str(caught.value) == (
                f"User {user} needs the role {role} in project demo for this, and has {', '.join(roles)}. (HTTP 403)"
            )
            assert caught.value.code == 403


def test_whose_servers() -> None:
    member = Identity("u", "u", "mine", "mine", ("member", "reader"), "audit")
    admin = Identity("u", "u", "mine", "mine", ("admin", "member", "reader"), "audit")
    assert member.may_touch("mine")
    assert not member.may_touch("theirs")
    assert admin.may_touch("theirs")


def test_no_secret_in_a_repr(catalog: Catalog, keys: str) -> None:
    issued = token(catalog, keys)
    assert issued.secret not in repr(issued)
    assert "argon2" not in repr(catalog.users)


def test_the_payload_is_keystones(catalog: Catalog, keys: str) -> None:
    issued = token(catalog, keys, now=NOW)
    with open(os.path.join(keys, "1"), "rb") as stream:
        payload = json.loads(Fernet(stream.read()).decrypt(issued.secret + "=" * (-len(issued.secret) % 4)))
    assert set(payload) == {
        *("user_id", "user_name", "project_id", "project_name"),
        *("roles", "issued_at", "expires_at", "audit_id"),
    }
    assert PASSWORD not in json.dumps(payload)


def test_key_files(catalog: Catalog, keys: str) -> None:
    old = os.umask(0)
    try:
        token(catalog, keys)
    finally:
        os.umask(old)
    assert numbers(keys) == [0, 1]
    assert stat.S_IMODE(os.stat(keys).st_mode) == 0o700
    assert {stat.S_IMODE(os.stat(os.path.join(keys, name)).st_mode) for name in os.listdir(keys)} == {0o600}


@pytest.mark.parametrize("name", ["", "0", "1"])
def test_keys_that_others_may_read_are_refused(name: str, catalog: Catalog, keys: str) -> None:
    issued = token(catalog, keys)
    path = os.path.join(keys, name) if name else keys
    os.chmod(path, 0o640 if name else 0o750)
    for act in (lambda: validate(issued.secret, catalog, keys), lambda: token(catalog, keys)):
        with pytest.raises(BarestackError, match=rf"^{path} has mode 0{'640' if name else '750'}: keys that others"):
            act()


def test_a_file_that_is_no_key(catalog: Catalog, keys: str) -> None:
    issued = token(catalog, keys)
    Path(keys, "1").write_text("no key")
    with pytest.raises(BarestackError, match="holds a file that is no Fernet key: remove it"):
        validate(issued.secret, catalog, keys)


def test_rotation_keeps_tokens_valid_for_as_long_as_there_are_keys(catalog: Catalog, keys: str) -> None:
    first = token(catalog, keys)
    rotate_keys(keys)
    assert numbers(keys) == [0, 1, 2]
    second = token(catalog, keys)
    assert validate(first.secret, catalog, keys)
    rotate_keys(keys)
    assert numbers(keys) == [0, 2, 3]
    with pytest.raises(Unauthorized):
        validate(first.secret, catalog, keys)
    assert validate(second.secret, catalog, keys)


def test_the_staged_key_becomes_primary(catalog: Catalog, keys: str) -> None:
    token(catalog, keys)
    staged = Path(keys, "0").read_bytes()
    rotate_keys(keys)
    assert Path(keys, "2").read_bytes() == staged
    assert Path(keys, "0").read_bytes() != staged


def test_an_old_primary_key_is_rotated_by_the_next_token(catalog: Catalog, keys: str) -> None:
    first = token(catalog, keys, key_lifetime=1000)
    past = time.time() - 1001
    os.utime(os.path.join(keys, "1"), (past, past))
    effects = Effects(False)
    token(catalog, keys, key_lifetime=1000, effects=effects)
    assert effects.names == [f"identity.keys {keys}"]
    assert numbers(keys) == [0, 1, 2]
    assert validate(first.secret, catalog, keys)
    effects = Effects(False)
    token(catalog, keys, key_lifetime=1000, effects=effects)
    assert effects.names == []


@pytest.mark.parametrize("left", [[], ["0"], ["0.tmp"], ["1"], ["0", "0.tmp"]])
def test_an_interrupted_creation_is_finished(left: list[str], catalog: Catalog, keys: str) -> None:
    os.makedirs(keys, 0o700)
    for name in left:
        Path(keys, name).write_bytes(Fernet.generate_key())
        os.chmod(os.path.join(keys, name), 0o600)
    issued = token(catalog, keys)
    assert validate(issued.secret, catalog, keys)
    if "1" not in left:
        assert numbers(keys) == [0, 1]
    rotate_keys(keys)
    assert numbers(keys) == [0, 1, 2]
    assert validate(issued.secret, catalog, keys)


def test_many_at_once(catalog: Catalog, keys: str) -> None:
    """Tokens issued while others make and rotate the keys are valid, whoever was first."""
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            issued = token(catalog, keys)
            if number == 3:
                rotate_keys(keys)
            for _ in range(20):
                assert validate(issued.secret, catalog, keys)
        except BaseException as error:  # noqa: BLE001 - reported by the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert numbers(keys) == [0, 1, 2]


def test_check_mode_on_a_fresh_site(catalog: Catalog, keys: str) -> None:
    effects = Effects(True)
    issued = token(catalog, keys, effects=effects)
    assert effects.names == [f"identity.keys {keys}"]
    assert not os.path.exists(keys)
    assert validate(issued.secret, catalog, keys, check_mode=True).user_name == "alice"
    with pytest.raises(Unauthorized, match="has no keys on this host"):
        validate(issued.secret, catalog, keys)
    with pytest.raises(Unauthorized):
        token(catalog, keys, effects=Effects(True), auth={"password": "wrong"})


def test_check_mode_where_there_are_keys_takes_real_tokens_only(catalog: Catalog, keys: str) -> None:
    rehearsal = token(catalog, keys, effects=Effects(True))
    real = token(catalog, keys)
    assert validate(real.secret, catalog, keys, check_mode=True)
    with pytest.raises(Unauthorized, match="^Not a valid token"):
        validate(rehearsal.secret, catalog, keys, check_mode=True)
    before = {name: Path(keys, name).read_bytes() for name in os.listdir(keys)}
    past = time.time() - 100
    os.utime(os.path.join(keys, "1"), (past, past))
    effects = Effects(True)
    assert validate(token(catalog, keys, effects=effects, key_lifetime=60).secret, catalog, keys)
    assert effects.names == [f"identity.keys {keys}"]
    assert {name: Path(keys, name).read_bytes() for name in os.listdir(keys)} == before


def test_a_token_does_not_contain_the_password(keys: str) -> None:
    data = site()
    data["users"][0]["password_hash"] = QUICK.hash("ab")
    short = Catalog.load(data)
    for _ in range(50):
        assert "ab" not in token(short, keys, auth={"password": "ab"}).secret
    data["users"][0]["password_hash"] = QUICK.hash("a")
    with pytest.raises(InvalidRequest, match="^User alice has a password of one character or two: choose a longer one"):
        token(Catalog.load(data), keys, auth={"password": "a"})


def test_identify_asks_for_the_role(catalog: Catalog, keys: str) -> None:
    params = {"token": token(catalog, keys).secret, "catalog": site(), "keys_directory": keys}
    assert identify(params, "member").user_name == "alice"
    with pytest.raises(Forbidden, match="needs the role admin in project demo"):
        identify(params, "admin")


def test_validation_is_quick(catalog: Catalog, keys: str) -> None:
    secret = token(catalog, keys).secret
    validate(secret, catalog, keys)
    started = time.perf_counter()
    for _ in range(100):
        validate(secret, catalog, keys)
    # About 0.3 ms each; the bound is for a machine that does other things too.
    assert time.perf_counter() - started < 2


def test_the_phase(keys: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
    from ansible_collections.barestack.kvm.plugins.modules.token import PHASE

    for name in [name for name in os.environ if name.startswith("OS_")]:
        monkeypatch.delenv(name)
    given = {"auth": AUTH, "catalog": site(), "keys_directory": keys}
    validated = ArgumentSpecValidator(PHASE.argument_spec).validate(given)
    assert validated.error_messages == []
    assert {PASSWORD, HASH} <= validated._no_log_values
    result = execute(PHASE, validated.validated_parameters, check_mode=False)
    assert result["changed"] is True
    assert PHASE.secret
    assert (result["user"]["name"], result["project"]["name"], result["roles"]) == (
        "alice",
        "demo",
        ["member", "reader"],
    )
    phase = {"token": result["token"], "catalog": site(), "keys_directory": keys}
    validated = ArgumentSpecValidator(CONTROL_SPEC).validate(phase)
    assert validated.error_messages == []
    assert result["token"] in validated._no_log_values
    assert identify(validated.validated_parameters, "member").user_id == result["user"]["id"]
    assert execute(PHASE, {**given, "lifetime": 60, "key_lifetime": 60}, check_mode=False)["changed"] is False
    with pytest.raises(InvalidRequest, match="lifetime: 61 is not allowed, it must be between 1 and key_lifetime, 60"):
        execute(PHASE, {**given, "lifetime": 61, "key_lifetime": 60}, check_mode=False)


def test_documentation_matches_the_options() -> None:
    from ansible_collections.barestack.kvm.plugins.doc_fragments.control_phase import ModuleDocFragment
    from ansible_collections.barestack.kvm.plugins.modules import token as module

    own = yaml.safe_load(module.DOCUMENTATION)["options"]
    _same(module.PHASE.argument_spec, {**own, **yaml.safe_load(ModuleDocFragment.CATALOG)["options"]})
    _same(CONTROL_SPEC, yaml.safe_load(ModuleDocFragment.DOCUMENTATION)["options"])


def _same(spec: dict[str, Any], documented: dict[str, Any]) -> None:
    assert set(spec) == set(documented)
    for name, option in spec.items():
        for key in ("type", "elements", "default", "required"):
            assert option.get(key) == documented[name].get(key), f"{name}.{key}"
        _same(option.get("options", {}), documented[name].get("suboptions", {}))


def test_keys_are_listed_again_when_a_rotation_gets_in_between(keys: str, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = KeyRepository(keys)
    repository.create()
    listed = repository._numbers
    stale = [[0, 1, 9]]
    monkeypatch.setattr(repository, "_numbers", lambda: stale.pop() if stale else listed())
    assert len(repository.keys()) == 2
