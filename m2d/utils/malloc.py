"""What the C library does with memory that is freed. Free of torch."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
WITHOUT_END = -1
OWN_LIMITS = (2**25, 2**26)  # the highest that glibc's own tuning reaches, as arguments of keep_freed_memory


def keep_freed_memory(largest: int = 2**30, most: int = WITHOUT_END) -> bool:
    """Let this process reuse what it frees, which it would otherwise give back, and ask for again page by page.

    A third of a conversion's time went into that, and 6 % of a training step's (docs/benchmarks.md).

    Args:
        largest: keep blocks of at most this many bytes.
        most: bytes that may lie free at the end of the heap; WITHOUT_END: any number.

    Returns:
        whether there is such a switch: only GNU's library has it, and elsewhere this does nothing.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(set_option(_MMAP_THRESHOLD, largest) and set_option(_TRIM_THRESHOLD, most))
