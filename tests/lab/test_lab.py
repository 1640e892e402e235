# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""``bin/lab up`` makes whole again whatever became of the hosts."""

from __future__ import annotations

import os
import signal

from lab_site import ROOT, on, sh


def test_a_host_killed_with_its_watcher_starts_again(lab: None) -> None:
    """As it is where a machine's processes were all killed: podman was never told, and says that the host runs."""
    state = "{{.State.ConmonPid}} {{.State.Pid}}"
    for pid in sh("podman", "container", "inspect", "--format", state, "kvm02").split():
        os.kill(int(pid), signal.SIGKILL)
    assert "kvm02: starting it" in sh(str(ROOT / "bin" / "lab"), "up")
    on("kvm02", "virsh -q list")
    assert "nothing changed" in sh(str(ROOT / "bin" / "lab"), "up")
