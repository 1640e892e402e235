# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Prefer hosts whose servers have images like this one."""

from __future__ import annotations

import numpy as np
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Floats, Hosts, Rows
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.base import Weigher


class ImagePropertiesWeigher(Weigher):
    """How often the host's servers have this image's properties, each by ``image_props_weight_setting`` or else 1.

    Off by default: ``image_props_weight_multiplier`` 0. A positive one brings like images together, a negative one
    spreads them. As in Nova an aggregate's multiplier counts only where the option itself is not 0.
    """

    name = "ImagePropertiesWeigher"
    multiplier_option = "image_props_weight_multiplier"
    default_multiplier = 0.0

    def concerns(self, spec: RequestSpec) -> bool:
        return self.options.multipliers.get(self.multiplier_option, self.default_multiplier) != 0

    def raw(self, hosts: Hosts, rows: Rows, spec: RequestSpec) -> Floats:
        setting = dict(self.options.weights("image_props_weight_setting"))
        weights = np.zeros(len(rows))
        for key, value in spec.image.properties.items():
            weight = setting.get(key, 0.0) if setting else 1.0
            if weight and (key, str(value)) in hosts.image_properties:
                weights += weight * hosts.image_properties[key, str(value)][rows]
        return weights
