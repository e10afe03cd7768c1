"""A cache of the latest few results, each made once, however many threads ask for it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class Cache(Generic[T]):
    """The latest few results; of several threads that want the same one, one works."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = Lock()
        self._futures: OrderedDict[Hashable, Future[T]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T], *, keep: bool = True) -> T:
        """What ``make`` made for this key, now or earlier; a failure is not kept."""
        with self._lock:
            future = self._futures.get(key)
            mine = future is None
            if future is None:
                future = self._futures[key] = Future()
                if len(self._futures) > self._most:
                    self._futures.popitem(last=False)
            self._futures.move_to_end(key)
        if mine:
            try:
                future.set_result(make())
            except BaseException as error:
                keep = False
                future.set_exception(error)
            if not keep:
                with self._lock:
                    self._futures.pop(key, None)
        return future.result()
