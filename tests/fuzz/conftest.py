"""Bounds of a case: seconds, memory, and how many cases there are."""

import os
import signal

import pytest

hypothesis = pytest.importorskip("hypothesis")

SECONDS, MEGABYTES = 60, 1500  # a case takes a tenth of either

COMMON = {
    "deadline": None,
    "database": None,
    "print_blob": True,
    "suppress_health_check": list(hypothesis.HealthCheck),
    "phases": (hypothesis.Phase.explicit, hypothesis.Phase.generate, hypothesis.Phase.shrink),
}
hypothesis.settings.register_profile("fuzz", max_examples=int(os.environ.get("CASES", "30")), **COMMON)


class OutOfBounds(BaseException):
    """No `Exception`: nothing on the way takes it for an error of the input."""


@pytest.fixture
def bounded():
    """A context for one case, which raises `OutOfBounds` where it hangs or takes memory without end."""
    resource = pytest.importorskip("resource")

    class Bounded:
        def __enter__(self):
            self.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            self.limit = resource.getrlimit(resource.RLIMIT_AS)
            with open("/proc/self/statm") as statm:  # pages of virtual memory
                now = int(statm.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (now + (4 * MEGABYTES << 20), self.limit[1]))
            self.handler = signal.signal(signal.SIGALRM, self.hung)
            signal.alarm(SECONDS)

        def hung(self, *_):
            raise OutOfBounds(f"more than {SECONDS} s")

        def __exit__(self, kind, *_):
            signal.alarm(0)
            signal.signal(signal.SIGALRM, self.handler)
            resource.setrlimit(resource.RLIMIT_AS, self.limit)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.before) >> 10
            if kind is not None and issubclass(kind, MemoryError):
                raise OutOfBounds("out of memory")
            if grown > MEGABYTES:
                raise OutOfBounds(f"{grown} MiB more than before")

    return Bounded()
