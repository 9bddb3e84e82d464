"""What keeps a call's audio inside this process: no core dump, no tracer, no freed memory that still holds it.

Rings, windows and buffers are overwritten where they end (docs/threats.md has the list). This module is for what other
code cannot reach: the image that a crash would write, and memory that libzmq, numpy and onnxruntime have given back.
"""

import ctypes
import resource
import sys
from typing import Final

from streamdet.errors import StreamdetError

# <linux/prctl.h>. Not dumpable: no core file, and none into a pipe either, which ignores RLIMIT_CORE. Only who has
# CAP_SYS_PTRACE may attach to the process or read its memory; the same user may not.
PR_SET_DUMPABLE: Final = 4
# <malloc.h>. glibc fills what is freed with this byte, and what is allocated with its complement.
M_PERTURB: Final = -6
FREED: Final = 0xDB


def forbid_dumps() -> None:
    """Forbid core dumps and tracers, from here to the process's end.

    Raises:
        StreamdetError: the kernel will not.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return  # RLIMIT_CORE is all there is
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise StreamdetError.of("prctl(PR_SET_DUMPABLE, 0)", ctypes.get_errno(), "no error: a core would show audio")


def overwrite_freed() -> None:
    """Have the C library overwrite memory that is given back, from here to the process's end; glibc's alone can."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_PERTURB, FREED)
