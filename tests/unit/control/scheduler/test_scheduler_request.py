# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""From the handle's servers to what the scheduler is asked."""

from __future__ import annotations

import dataclasses

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import (
    RequestSpec,
    ServerGroup,
    merged,
    parse_availability_zone,
    request_spec,
    resources,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Fault, Flavor, Image, Instance

FLAVOR = Flavor("1", "m1.small", vcpus=2, ram=2048, disk=20)
IMAGE = Image("i", "debian", "/i", "sha256:0", "qcow2")


def server(uuid="u", flavor=FLAVOR, image=IMAGE, **fields):
    return Instance(*(1, uuid, f"name-{uuid}", "web", "p", "w", flavor, image, ""), **fields)


def flavored(**extra_specs):
    return dataclasses.replace(
        FLAVOR, extra_specs={key.replace("__", ":"): value for key, value in extra_specs.items()}
    )


@pytest.mark.parametrize(
    ("disk", "ephemeral", "swap", "min_disk", "expected"),
    [
        (20, 0, 0, 0, 20),
        (20, 5, 1, 0, 26),
        (20, 5, 1024, 0, 26),
        (20, 0, 1025, 8, 22),
        (0, 1, 0, 8, 9),
        (0, 0, 0, 0, None),
    ],
)
def test_resources_count_all_of_the_local_disk(disk, ephemeral, swap, min_disk, expected):
    image = Image("i", "debian", "/i", "sha256:0", "qcow2", min_disk=min_disk)
    wanted = resources(Flavor("1", "f", 2, 2048, disk, ephemeral, swap), image)
    assert wanted.get("DISK_GB") == expected
    assert (wanted["VCPU"], wanted["MEMORY_MB"]) == (2, 2048)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, (None, None)),
        ("", (None, None)),
        ("az1", ("az1", None)),
        ("az1:kvm02", ("az1", "kvm02")),
        (":kvm02", (None, "kvm02")),
        ("az1::kvm02", ("az1", "kvm02")),
        ("az1:kvm02:kvm02", ("az1", "kvm02")),
    ],
)
def test_the_zone_may_force_a_host(text, expected):
    assert parse_availability_zone(text) == expected


@pytest.mark.parametrize("text", ["az1:", "az1::", "az1:a:b", "az1:a:a:a"])
def test_a_zone_that_cannot_be_read(text):
    with pytest.raises(InvalidRequest, match="Unable to parse availability_zone"):
        parse_availability_zone(text)


def test_request_spec_of_an_instance():
    hints = {"different_host": "x", "_nova_check_type": ["rebuild"]}
    attempts = (Fault("disk", "kvm01", "no space left"), Fault("domain", "kvm03", "libvirt is gone"))
    instance = server(availability_zone="az1:kvm02", scheduler_hints=hints, attempts=attempts)
    assert request_spec(instance) == RequestSpec(
        instance_uuids=("u",),
        flavor=FLAVOR,
        image=IMAGE,
        project_id="p",
        user_id="w",
        availability_zone="az1",
        scheduler_hints={"different_host": "x"},
        resources={"VCPU": 2, "MEMORY_MB": 2048, "DISK_GB": 20},
        tried={"kvm01": "disk on kvm01: no space left", "kvm03": "domain on kvm03: libvirt is gone"},
        forced_host="kvm02",
    )


@pytest.mark.parametrize(
    ("extra_specs", "expected"),
    [
        ({}, {"VCPU": 2, "MEMORY_MB": 2048, "DISK_GB": 20}),
        ({"hw__cpu_policy": "shared"}, {"VCPU": 2, "MEMORY_MB": 2048, "DISK_GB": 20}),
        ({"hw__cpu_policy": "dedicated"}, {"PCPU": 2, "MEMORY_MB": 2048, "DISK_GB": 20}),
        (
            {"hw__cpu_policy": "dedicated", "hw__emulator_threads_policy": "isolate"},
            {"PCPU": 3, "MEMORY_MB": 2048, "DISK_GB": 20},
        ),
        (
            {"hw__cpu_policy": "mixed", "hw__cpu_dedicated_mask": "1"},
            {"VCPU": 1, "PCPU": 1, "MEMORY_MB": 2048, "DISK_GB": 20},
        ),
        ({"resources__PCPU": "2"}, {"PCPU": 2, "MEMORY_MB": 2048, "DISK_GB": 20}),
        ({"resources__CUSTOM_FPGA": "1"}, {"VCPU": 2, "MEMORY_MB": 2048, "DISK_GB": 20, "CUSTOM_FPGA": 1}),
        ({"resources1__CUSTOM_A": "1", "resources2__CUSTOM_A": "2", "resources__DISK_GB": "0"}, None),
        ({"resources__VCPU": "0", "resources__MEMORY_MB": "9"}, {"MEMORY_MB": 9, "DISK_GB": 20}),
    ],
)
def test_extra_specs_ask_for_resources(extra_specs, expected):
    request = request_spec(server(flavor=flavored(**extra_specs)))
    assert request.resources == (expected or {"VCPU": 2, "MEMORY_MB": 2048, "CUSTOM_A": 3})


@pytest.mark.parametrize(
    ("extra_specs", "message"),
    [
        ({"resources__CUSTOM_FPGA": "many"}, "m1.small: extra spec resources:CUSTOM_FPGA=many: give a resource class"),
        ({"resources__custom": "1"}, "extra spec resources:custom=1: give a resource class in capitals"),
        ({"trait__CUSTOM_X": "yes"}, "flavor m1.small: trait:CUSTOM_X=yes: give a trait .* required or forbidden"),
        ({"trait__custom": "required"}, "trait:custom=required: give a trait in capitals"),
    ],
)
def test_extra_specs_that_cannot_be_read(extra_specs, message):
    with pytest.raises(InvalidRequest, match=message):
        request_spec(server(flavor=flavored(**extra_specs)))


def test_traits_of_flavor_and_image():
    image = dataclasses.replace(IMAGE, properties={"trait:HW_GPU": "required", "os_distro": "debian"})
    flavor = flavored(trait__CUSTOM_A="required", trait__CUSTOM_B="forbidden", trait1__CUSTOM_C="required")
    request = request_spec(server(flavor=flavor, image=image))
    assert request.required_traits == {"HW_GPU", "CUSTOM_A", "CUSTOM_C"}
    assert request.forbidden_traits == {"CUSTOM_B"}
    wrong = dataclasses.replace(IMAGE, properties={"trait:HW_GPU": "forbidden"})
    with pytest.raises(InvalidRequest, match="image debian: trait:HW_GPU=forbidden: .* its value required"):
        request_spec(server(image=wrong))


@pytest.mark.parametrize(
    ("policy", "required", "forbidden"),
    [
        ("require", {"HW_CPU_HYPERTHREADING"}, set()),
        ("isolate", set(), {"HW_CPU_HYPERTHREADING"}),
        ("prefer", set(), set()),
    ],
)
def test_the_thread_policy_is_a_trait_of_hosts(policy, required, forbidden):
    flavor = flavored(hw__cpu_policy="dedicated", hw__cpu_thread_policy=policy)
    request = request_spec(server(flavor=flavor))
    assert (request.required_traits, request.forbidden_traits) == (required, forbidden)


def test_cpus_of_its_own_by_the_image_stand_beside_amounts_of_the_flavor():
    image = dataclasses.replace(IMAGE, properties={"hw_cpu_policy": "dedicated"})
    request = request_spec(server(flavor=flavored(resources__VCPU="0"), image=image))
    assert request.resources == {"PCPU": 2, "MEMORY_MB": 2048, "DISK_GB": 20}


GROUP = ServerGroup("g-1", "web", "anti-affinity", members=frozenset(["old", "1", "2"]))


def test_a_server_comes_with_its_group():
    assert request_spec(server("1"), GROUP).group == GROUP
    assert request_spec(server("3")).group is None


def test_requests_for_the_same_are_one():
    small = server("3", flavor=dataclasses.replace(FLAVOR, ram=1024))
    asked = [("1", None), ("2", GROUP), ("4", None), ("5", GROUP), ("6", None)]
    specs = [request_spec(server(uuid), group) for uuid, group in asked]
    specs.insert(2, request_spec(small))
    assert [spec.instance_uuids for spec in merged(specs)] == [("1", "4", "6"), ("2", "5"), ("3",)]
    assert [spec.instance_uuid for spec in merged(specs)] == ["1", "2", "3"]
    assert merged(merged(specs)) == merged(specs)
