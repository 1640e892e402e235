# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The config drive: its files against what Nova writes, and its image as the system's own tools see it."""

from __future__ import annotations

import dataclasses
import io
import json
import multiprocessing
import pathlib
import subprocess
import uuid
from typing import Any

import pycdlib
import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.host import config_drive
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import (
    FixedIP,
    Flavor,
    Image,
    Instance,
    Network,
    Port,
    Subnet,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import from_wire, to_wire
from ansible_collections.barestack.kvm.plugins.module_utils.phase import execute
from ansible_collections.barestack.kvm.plugins.modules.config_drive import PHASE

FORK = multiprocessing.get_context("fork")
SECRET = "#cloud-config\npassword: geheim\n"
DHCP = Subnet("s4", "s4", "10.0.0.0/24", "10.0.0.1", True, ("9.9.9.9", "1.1.1.1"), (("192.168.0.0/16", "10.0.0.9"),))
STATIC = dataclasses.replace(DHCP, id="s4s", enable_dhcp=False)
STATIC6 = Subnet("s6", "s6", "2001:db8::/64", "2001:db8::1", False, ("2620:fe::fe",))
DHCP6 = dataclasses.replace(STATIC6, id="s6d", enable_dhcp=True)


def port_of(*subnets: Subnet, number: int = 1) -> Port:
    network = Network("net-id", "net", "local", 1442, "example.org.", subnets)
    addresses = {"s4": "10.0.0.5", "s4s": "10.0.0.6", "s6": "2001:db8::5", "s6d": "2001:db8::6"}
    return Port(
        id=f"0000000{number}-1111-2222-3333-444444444444",
        network=network,
        mac_address=f"fa:16:3e:00:00:0{number}",
        fixed_ips=tuple(FixedIP(subnet.id, addresses[subnet.id]) for subnet in subnets),
    )


def instance_of(**changes: Any) -> Instance:
    instance = Instance(
        id=1,
        uuid=str(uuid.UUID(int=1)),
        name="Web server",
        hostname="web-server",
        project_id="project",
        user_id="u",
        flavor=Flavor("f", "m1.tiny", 1, 64, 1),
        image=Image("i", "cirros", "/image", "", "qcow2"),
        created_at="",
        key_name="mine",
        public_key="ssh-ed25519 AAAA me@here",
        metadata={"role": "wéb"},
        user_data=SECRET,
        availability_zone="nova",
        ports=(port_of(DHCP),),
    )
    return dataclasses.replace(instance, **changes)


def run(root: pathlib.Path, *instances: Instance, state: str = "present", check: bool = False) -> dict[str, Any]:
    params = {
        "instances": [to_wire(instance) for instance in instances],
        "state": state,
        "max_concurrent_builds": 10,
        "instances_path": str(root),
        "state_path": "/nonexistent",
        "log_path": "/nonexistent",
    }
    return execute(PHASE, params, check)


def read_drive(path: pathlib.Path, names: str) -> dict[str, bytes]:
    """The files of a drive, by their ``rr_path`` (Rock Ridge) or ``joliet_path`` names."""
    iso = pycdlib.PyCdlib()
    iso.open(str(path))
    found = {}
    for directory, _directories, files in iso.walk(**{names: "/"}):
        for name in files:
            buffer = io.BytesIO()
            iso.get_file_from_iso_fp(buffer, **{names: f"{directory}/{name}"})
            found[f"{directory}/{name}".lstrip("/")] = buffer.getvalue()
    iso.close()
    return found


def test_the_drive_is_what_cloud_init_looks_for(tmp_path: pathlib.Path) -> None:
    instance = instance_of()
    path = tmp_path / instance.uuid / "disk.config"

    result = run(tmp_path, instance)

    (disk,) = from_wire(Instance, result["instances"][0]).disks
    assert (disk.role, disk.path, disk.format) == ("config_drive", str(path), "raw")
    assert path.stat().st_mode & 0o777 == 0o640
    probe = subprocess.check_output(["blkid", "-p", "-o", "export", path], text=True)
    assert "LABEL=config-2\n" in probe
    assert "TYPE=iso9660\n" in probe
    rock_ridge = read_drive(path, "rr_path")
    names = {"meta_data.json", "network_data.json", "vendor_data.json", "user_data"}
    assert set(rock_ridge) == {f"openstack/{version}/{name}" for version in ("2018-08-27", "latest") for name in names}
    assert rock_ridge == read_drive(path, "joliet_path") == config_drive.drive_files(instance)
    assert rock_ridge["openstack/latest/user_data"] == SECRET.encode()
    assert json.loads(rock_ridge["openstack/latest/vendor_data.json"]) == {}


def test_meta_data_is_novas() -> None:
    assert json.loads(config_drive.drive_files(instance_of())["openstack/latest/meta_data.json"]) == {
        "uuid": "00000000-0000-0000-0000-000000000001",
        "meta": {"role": "wéb"},
        "public_keys": {"mine": "ssh-ed25519 AAAA me@here"},
        "keys": [{"name": "mine", "type": "ssh", "data": "ssh-ed25519 AAAA me@here"}],
        "hostname": "web-server",
        "name": "Web server",
        "launch_index": 0,
        "availability_zone": "nova",
        "project_id": "project",
        "devices": [],
    }


def test_what_was_not_given_is_not_there() -> None:
    bare = instance_of(key_name=None, public_key=None, metadata={}, user_data=None, ports=())
    files = config_drive.drive_files(bare)

    assert not {"meta", "public_keys", "keys"} & set(config_drive.meta_data(bare))
    assert "openstack/latest/user_data" not in files
    assert json.loads(files["openstack/latest/network_data.json"]) == {}


def test_empty_user_data_is_an_empty_file(tmp_path: pathlib.Path) -> None:
    run(tmp_path, instance_of(user_data=""))

    assert read_drive(tmp_path / instance_of().uuid / "disk.config", "rr_path")["openstack/latest/user_data"] == b""


def test_a_network_with_dhcp_is_told_as_nova_tells_it() -> None:
    port = port_of(DHCP)

    assert config_drive.network_data([port]) == {
        "links": [
            {
                "id": "tap00000001-11",
                "vif_id": port.id,
                "type": "bridge",
                "mtu": None,
                "ethernet_mac_address": "fa:16:3e:00:00:01",
            }
        ],
        "networks": [
            {"id": "network0", "type": "ipv4_dhcp", "link": "tap00000001-11", "network_id": "net-id"},
        ],
        "services": [{"type": "dns", "address": "9.9.9.9"}, {"type": "dns", "address": "1.1.1.1"}],
    }


def test_networks_without_dhcp_are_told_with_addresses_and_routes() -> None:
    found = config_drive.network_data([port_of(STATIC, STATIC6)])

    assert found["links"][0]["mtu"] == 1442
    assert found["networks"] == [
        {
            "id": "network0",
            "type": "ipv4",
            "link": "tap00000001-11",
            "network_id": "net-id",
            "ip_address": "10.0.0.6",
            "netmask": "255.255.255.0",
            "routes": [
                {"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.0.0.1"},  # noqa: S104
                {"network": "192.168.0.0", "netmask": "255.255.0.0", "gateway": "10.0.0.9"},
            ],
            "services": [{"type": "dns", "address": "9.9.9.9"}, {"type": "dns", "address": "1.1.1.1"}],
        },
        {
            "id": "network1",
            "type": "ipv6",
            "link": "tap00000001-11",
            "network_id": "net-id",
            "ip_address": "2001:db8::5",
            "netmask": "ffff:ffff:ffff:ffff::",
            "routes": [{"network": "::", "netmask": "::", "gateway": "2001:db8::1"}],
            "services": [{"type": "dns", "address": "2620:fe::fe"}],
        },
    ]
    assert len(found["services"]) == 3


def test_several_ports_share_one_list_of_services() -> None:
    no_gateway = dataclasses.replace(STATIC, gateway_ip=None, host_routes=())
    found = config_drive.network_data([port_of(DHCP, DHCP6), port_of(no_gateway, number=2), port_of(number=3)])

    assert [link["id"] for link in found["links"]] == ["tap00000001-11", "tap00000002-11"]
    assert [(net["id"], net["type"]) for net in found["networks"]] == [
        ("network0", "ipv4_dhcp"),
        ("network1", "ipv6_dhcp"),
        ("network2", "ipv4"),
    ]
    assert found["networks"][2]["routes"] == []
    assert [service["address"] for service in found["services"]] == ["9.9.9.9", "1.1.1.1", "2620:fe::fe"]


def test_a_rerun_changes_nothing_even_where_the_server_has_changed(tmp_path: pathlib.Path) -> None:
    first = run(tmp_path, instance_of())
    path = tmp_path / instance_of().uuid / "disk.config"
    before = path.read_bytes()

    second = run(tmp_path, instance_of(metadata={"role": "db"}))

    assert first["changed"] is True
    assert second["changed"] is False
    assert second["instances"][0]["disks"] == first["instances"][0]["disks"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("keep", [0, 100, 40_000, -2048])
def test_a_drive_that_is_not_whole_is_built_anew(tmp_path: pathlib.Path, keep: int) -> None:
    run(tmp_path, instance_of())
    path = tmp_path / instance_of().uuid / "disk.config"
    path.write_bytes(path.read_bytes()[:keep])

    assert run(tmp_path, instance_of())["changed"] is True

    assert read_drive(path, "rr_path") == config_drive.drive_files(instance_of())


def test_neither_diff_nor_result_shows_what_is_in_the_files(tmp_path: pathlib.Path) -> None:
    for check in (True, False):
        result = run(tmp_path, instance_of(), check=check)

        assert f"openstack/latest/user_data ({len(SECRET)} bytes)" in result["diff"][0]["after"]
        assert "geheim" not in json.dumps({key: value for key, value in result.items() if key != "instances"})
        if check:
            assert list(tmp_path.iterdir()) == []
            assert result["instances"][0]["disks"][0]["role"] == "config_drive"


def test_only_who_wants_a_drive_gets_one(tmp_path: pathlib.Path) -> None:
    without = instance_of(config_drive=False)
    mandatory = dataclasses.replace(without.image, properties={"img_config_drive": "mandatory"})

    assert run(tmp_path, without)["changed"] is False
    assert run(tmp_path, without)["instances"][0]["disks"] == []
    assert run(tmp_path, dataclasses.replace(without, image=mandatory))["changed"] is True


def test_absent_removes_it_once_with_what_a_kill_left(tmp_path: pathlib.Path) -> None:
    run(tmp_path, instance_of())
    path = tmp_path / instance_of().uuid / "disk.config"
    path.with_name("disk.config.part").touch()

    checked = run(tmp_path, instance_of(), state="absent", check=True)
    first = run(tmp_path, instance_of(), state="absent")
    second = run(tmp_path, instance_of(config_drive=False), state="absent")

    assert checked["effects"] == first["effects"] == [f"config_drive.iso {path}"]
    assert second["changed"] is False
    assert list(path.parent.iterdir()) == []


def run_in_child(root: pathlib.Path, instances: list[Instance]) -> None:
    assert not any(item["fault"] for item in run(root, *instances)["instances"])


def test_several_runs_at_once_end_with_whole_drives(tmp_path: pathlib.Path) -> None:
    instances = [instance_of(uuid=str(uuid.UUID(int=number))) for number in range(1, 21)]
    children = [FORK.Process(target=run_in_child, args=(tmp_path, instances)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(30)

    assert [child.exitcode for child in children] == [0, 0, 0]
    for instance in instances:
        assert read_drive(tmp_path / instance.uuid / "disk.config", "rr_path") == config_drive.drive_files(instance)
    assert list(tmp_path.rglob("*.part")) == []
