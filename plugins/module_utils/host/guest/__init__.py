# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The guest: what it is made of (config), how it should be (designer), and libvirt itself (driver)."""
