# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Work that several instances of one call share: a network, a transaction."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Callable, Dict, Generic, Hashable, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Once(Generic[K, T]):
    """Calls ``work`` once for each key. Whoever asks first does it; all get its result, or its error."""

    def __init__(self, work: Callable[[K], T]) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._answers: Dict[K, Future[T]] = {}

    def __call__(self, key: K) -> T:
        """The result for ``key``; raises what the work raised, to every caller."""
        with self._lock:
            first = key not in self._answers
            answer = self._answers.setdefault(key, Future())
        if first:
            try:
                answer.set_result(self._work(key))
            except BaseException as error:  # noqa: BLE001 - kept for every caller, raised below
                answer.set_exception(error)
        return answer.result()
