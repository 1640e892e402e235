# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Which host gets a server, and why no other did: Nova's filters, weighers and placement's capacity rule, pure.

``decide.decide`` is the entry; ``filters.FILTERS`` and ``weighers.WEIGHERS`` list the rules, one file each. Rules work
on columns (``columns.Hosts``), not on one host after the other. NumPy is imported here and nowhere else.
"""
