# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Keep images with a property to the aggregates that name its value."""

from __future__ import annotations

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Aggregate, Bools, Hosts
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters import aggregate_metadata
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec


class AggregateImagePropertiesIsolation(Filter):
    """Passes hosts whose aggregates' metadata does not gainsay the image's properties.

    A metadata key that is a property of the image must have the property's value (or it among several, with commas). A
    key that the image does not have says nothing. With ``aggregate_image_properties_isolation_namespace`` only keys
    that begin with it and ``aggregate_image_properties_isolation_separator`` count.
    """

    name = "AggregateImagePropertiesIsolation"
    once = True

    def mask(self, hosts: Hosts, spec: RequestSpec) -> Bools:
        if not spec.image.properties:
            return hosts.everywhere
        return hosts.aggregates.mask(lambda aggregates: not self._against(aggregates, spec))

    def reason(self, hosts: Hosts, row: int, spec: RequestSpec) -> str:
        key, allowed = self._against(hosts.aggregates[row], spec)[0]
        return f"{key} {spec.image.properties[key]} wanted, its aggregates allow {', '.join(sorted(allowed))}"

    def _against(self, aggregates: tuple[Aggregate, ...], spec: RequestSpec) -> list[tuple[str, set[str]]]:
        """(property, values allowed) of those that the aggregates gainsay."""
        namespace = self.options.aggregate_image_properties_isolation_namespace
        prefix = namespace + self.options.aggregate_image_properties_isolation_separator if namespace else ""
        return [
            (key, allowed)
            for key, allowed in aggregate_metadata.values(aggregates).items()
            if key.startswith(prefix)
            and spec.image.properties.get(key)
            and str(spec.image.properties[key]) not in allowed
        ]
