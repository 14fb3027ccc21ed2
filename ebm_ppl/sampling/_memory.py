"""What a run needs, before anything of it is allocated."""

import math
import os
import pathlib
import sys

import jax

from ebm_ppl.errors import InsufficientMemoryError
from ebm_ppl.sampling._low_rank import HISTORY
from ebm_ppl.sampling._run_chains import chunk_capacity

STATS_BYTES = 40  # of all statistics of one draw
STATE_EVENTS = 8  # arrays of the size of an event in one chain's state, its gradient and its proposal among them
GIBIBYTE = 2**30


def check_memory(
    *, num_chains: int, num_samples: int, event_shape: tuple[int, ...], itemsize: int, precondition: str, stored: bool
) -> None:
    """Refuse a run whose draws, chunk or chains would not fit.

    Raises:
        InsufficientMemoryError: names what is too large and what to change.
    """
    size = math.prod(event_shape)
    row = num_chains * (size * itemsize + STATS_BYTES)
    capacity = chunk_capacity(num_samples, num_chains, event_shape, itemsize)
    needs = {
        "draws": 0 if stored else 2 * num_samples * row,  # in pieces, then joined
        "chunk": 2 * capacity * row,  # where it is made, and its copy on the host
        "chains": num_chains * (STATE_EVENTS * size + _learning(precondition, size)) * itemsize,
    }
    _refuse_beyond(free_memory(), needs, "of memory", stored=stored)
    on_device = {name: needs[name] for name in ("chunk", "chains")}
    _refuse_beyond(free_device_memory(), on_device, "on the device", stored=stored)


def _learning(precondition: str, size: int) -> int:
    """Numbers that warm-up keeps per chain beside its state."""
    kept = {"dense": 6 * size * size, "low_rank": 4 * HISTORY * size}  # moments, their update, the map
    return kept.get(precondition, 4 * size)


def _refuse_beyond(free: float, needs: dict[str, int], where: str, *, stored: bool) -> None:
    total = sum(needs.values())
    if total <= free:
        return
    largest = max(needs, key=lambda name: needs[name])
    if largest == "draws" and not stored:
        cure = "stream them to disk with `store=`, keep fewer (`num_samples`, with more `thinning`) or use fewer chains"
    elif largest == "chains":
        cure = "use fewer `num_chains`, or precondition='diagonal'"
    else:
        cure = "use fewer `num_chains`"
    parts = ", ".join(f"{name} {need / GIBIBYTE:.3g}" for name, need in needs.items() if need)
    raise InsufficientMemoryError(
        f"this run needs about {total / GIBIBYTE:.3g} GiB {where} ({parts}), but {free / GIBIBYTE:.3g} GiB are free: "
        f"{cure}."
    )


def free_memory() -> float:
    """Bytes that this process may still allocate; infinite where the system does not say."""
    return min(_available(), _address_space())


def free_device_memory() -> float:
    """Bytes free on the default device; infinite for CPUs, whose memory is the host's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" not in stats:
        return math.inf
    return float(stats["bytes_limit"] - stats.get("bytes_in_use", 0))


def _available() -> float:
    meminfo = pathlib.Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(int(line.split()[1]) * 1024)
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return math.inf


def _address_space() -> float:
    """What RLIMIT_AS (`ulimit -v`) leaves."""
    if sys.platform == "win32":
        return math.inf
    import resource  # not on Windows

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return math.inf
    status = pathlib.Path("/proc/self/statm")
    used = int(status.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0
    return float(max(0, limit - used))
