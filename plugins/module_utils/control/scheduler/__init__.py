# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Which host gets a server, and why no other did: Nova's filters, weighers and placement's capacity rule, pure.

``decide.decide`` is the entry; ``filters.FILTERS`` and ``weighers.WEIGHERS`` list the rules, one file each.
"""
