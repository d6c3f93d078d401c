"""Bytes that are sent and received but never looked at: many of them, in little memory.

A rank that only emulates training sends and receives messages of their true size, hundreds of megabytes for a large
layer. What is in them does not matter, so a long payload is a range of addresses behind which the same few megabytes
lie again and again. The sockets and the library see an ordinary buffer.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref

import torch
from torch import Tensor

PIECE_BYTES = 16 * 1024 * 1024
"""What a payload takes of the memory at most; a multiple of every page size."""
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS, _MAP_NORESERVE = 0x01, 0x02, 0x10, 0x20, 0x4000
"""`mman.h` of Linux on x86 and ARM."""
_PROT_NONE, _PROT_READ, _PROT_WRITE = 0, mmap.PROT_READ, mmap.PROT_WRITE
_FAILED = ctypes.c_void_p(-1).value


def payload(nbytes: int) -> Tensor:
    """Return `nbytes` zeros to send from or to receive into, as a flat tensor of bytes.

    Beyond `PIECE_BYTES` the bytes at i and i + `PIECE_BYTES` are the same byte, where the system can do that; elsewhere
    the tensor takes all of its memory.
    """
    if nbytes <= PIECE_BYTES or sys.platform != "linux":
        return torch.zeros(nbytes, dtype=torch.uint8)
    try:
        return _repeated(nbytes)
    except OSError:
        return torch.zeros(nbytes, dtype=torch.uint8)


def _repeated(nbytes: int) -> Tensor:
    """A tensor over a reserved range, each piece of which maps the same file without a name. Raises `OSError`."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)

    def mapped(at: int | None, length: int, protection: int, flags: int, file: int) -> int:
        address = libc.mmap(at, length, protection, flags, file, 0)
        if address is None or address == _FAILED:
            raise OSError(ctypes.get_errno(), "mmap")
        return int(address)

    length = -(-nbytes // PIECE_BYTES) * PIECE_BYTES
    file = os.memfd_create("stanza-sim-payload", os.MFD_CLOEXEC)
    try:
        os.ftruncate(file, PIECE_BYTES)
        begin = mapped(None, length, _PROT_NONE, _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE, -1)
        try:
            for at in range(begin, begin + length, PIECE_BYTES):
                mapped(at, PIECE_BYTES, _PROT_READ | _PROT_WRITE, _MAP_SHARED | _MAP_FIXED, file)
        except OSError:
            libc.munmap(begin, length)
            raise
    finally:
        os.close(file)  # the mappings keep what it names
    buffer = (ctypes.c_ubyte * nbytes).from_address(begin)
    weakref.finalize(buffer, libc.munmap, begin, length)  # the tensor keeps the buffer
    return torch.frombuffer(buffer, dtype=torch.uint8)
