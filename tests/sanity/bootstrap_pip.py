# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Stands where ansible-test looks for get-pip.py, which it would download: Python ships a pip of its own.

It runs in ansible-test's new virtual environment, and also shows that environment the control side's libraries, since
validate-modules imports each module to see its argument spec.
"""

from __future__ import annotations

import ensurepip
import subprocess
import sys
import sysconfig
from pathlib import Path

ensurepip.bootstrap()
own = Path(sysconfig.get_path("purelib"))
checkout = Path(__file__).parents[5]  # bin/test puts this file at .cache/ansible-test/.ansible/test/cache
(own / "barestack.pth").write_text(f"{checkout}/.venv/{own.relative_to(sys.prefix)}\n")
wanted = [argument for argument in sys.argv[1:] if argument not in ("--no-setuptools", "--no-wheel")]
sys.exit(subprocess.call([sys.executable, "-m", "pip", "install", *wanted]))
