# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The weighers. To add one: a file beside this one, and its class in ``WEIGHERS``."""

from __future__ import annotations

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.base import Weigher
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.cpu import CPUWeigher
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.disk import DiskWeigher
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.ram import RAMWeigher

WEIGHERS: tuple[type[Weigher], ...] = (RAMWeigher, CPUWeigher, DiskWeigher)
