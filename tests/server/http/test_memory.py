"""What the C library keeps of freed memory."""

import ctypes
import os
import subprocess
import sys

import pytest

from kgtrace_server.http.memory import KEPT_BYTES, MAPPED_BYTES
from tests.server.waiting import PATIENCE

SCRIPT = """
import ctypes, sys
from kgtrace_server.http.memory import bound_heap

class Mallinfo(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
c.free.restype, c.free.argtypes = None, [ctypes.c_void_p]
c.mallinfo2.restype = Mallinfo
if sys.argv[1] == "bounded":
    bound_heap()
for size in map(int, sys.argv[2:]):  # the first teaches glibc that such blocks come and go
    c.free(c.malloc(size))
    c.free(c.malloc(size))
print(c.mallinfo2().fordblks)
"""

needs_glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library is not glibc 2.33")


def kept(how: str, *sizes: int) -> int:
    """Bytes that a process keeps after it has freed blocks of these sizes."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", SCRIPT, how, *map(str, sizes)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=PATIENCE, env=environment).stdout)


@needs_glibc
def test_large_blocks_are_given_back() -> None:
    """glibc by itself keeps what a hard question needed; bounded it does not."""
    sizes = (MAPPED_BYTES, 5 * MAPPED_BYTES)
    assert kept("as it is", *sizes) > KEPT_BYTES
    assert kept("bounded", *sizes) < MAPPED_BYTES
