"""Start a program that does not notice when network interfaces come and go: `python undisturbed.py PROGRAM ARGUMENT…`.

Chromium breaks off what it is asking for whenever they do, and Docker makes and removes them all the time, for the
tests beside and for whatever else runs on the machine. A program that is refused a netlink socket takes its network to
be there, and as it is. Linux on x86-64 and ARM64; elsewhere the program is started as it is.
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
NUMBER, FIRST_ARGUMENT = 0, 16  # where they stand in struct seccomp_data
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EAFNOSUPPORT


def refuse_netlink(number: int) -> None:
    """Refuse netlink sockets to this process and all that it starts."""
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
    told = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.prctl(SET_SECCOMP, FILTER, told, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    if sys.platform == "linux" and platform.machine() in SOCKET:
        refuse_netlink(SOCKET[platform.machine()])
    os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606 - to be that program is its use
