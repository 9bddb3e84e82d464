"""Hand sockets over as systemd does: `inherit.py NAME=FD ... -- COMMAND ...` runs COMMAND with them from 3 on."""

import fcntl
import os
import sys

FIRST_FD = 3
# Out of the way of the places where they shall be.
ABOVE = 100

if __name__ == "__main__":
    at = sys.argv.index("--")
    names, numbers = zip(*(one.split("=") for one in sys.argv[1:at]), strict=True)
    for place, number in enumerate([fcntl.fcntl(int(number), fcntl.F_DUPFD, ABOVE) for number in numbers], FIRST_FD):
        os.dup2(number, place)
        os.close(number)
    os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names)}
    os.execvp(sys.argv[at + 1], sys.argv[at + 1 :])
