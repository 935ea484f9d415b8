"""Start a program without netlink sockets: `python without_netlink.py PROGRAM ARGUMENT…`.

Chromium aborts its requests whenever a network interface appears or disappears, and Docker creates and removes
interfaces all the time. Without netlink sockets Chromium does not notice, and assumes that the network does not change.
This works on Linux on x86-64 and ARM64; elsewhere the program is started unchanged.
"""

import ctypes
import errno
import os
import platform
import socket
import struct
import sys

SOCKET = {"x86_64": 41, "aarch64": 198}  # the system call's number
NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 38, 22, 2  # of prctl
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # of classic BPF, on 32 bits
NUMBER, FIRST_ARGUMENT = 0, 16  # their offsets in struct seccomp_data
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EAFNOSUPPORT


def refuse_netlink(number: int) -> None:
    """Refuse netlink sockets to this process and to every process that it starts."""
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (LOAD, 0, 0, NUMBER),
            (JUMP_IF_EQUAL, 0, 3, number),
            (LOAD, 0, 0, FIRST_ARGUMENT),
            (JUMP_IF_EQUAL, 0, 1, socket.AF_NETLINK),
            (RETURN, 0, 0, REFUSE),
            (RETURN, 0, 0, ALLOW),
        )
    )
    instructions = ctypes.create_string_buffer(program)
    description = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.prctl(SET_SECCOMP, FILTER, description, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    if sys.platform == "linux" and platform.machine() in SOCKET:
        refuse_netlink(SOCKET[platform.machine()])
    os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606 - becoming that program is the purpose
