"""What processes of this machine listen on, as Linux tells it."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_LISTENS: Final = "0A"  # The state of a TCP socket that accepts connections, in /proc/net/tcp.


def listening(pids: Iterable[int]) -> set[tuple[str, int]]:
    """Return the TCP addresses and ports on which any of these processes accepts connections."""
    inodes = {inode for pid in pids for inode in _sockets(pid)}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENS and fields[9] in inodes:
                address, _, port = fields[1].partition(":")
                found.add((_address(address), int(port, 16)))
    return found


def _sockets(pid: int) -> set[str]:
    """Return the inodes of a process's sockets."""
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # It was closed meanwhile.
            links.append(str(entry.readlink()))
    return {match[1] for link in links if (match := re.fullmatch(r"socket:\[(\d+)\]", link))}


def _address(hexadecimal: str) -> str:
    """Return an address as people write it; Linux writes words of 4 bytes in the machine's own order."""
    words = [bytes.fromhex(hexadecimal[start : start + 8])[::-1] for start in range(0, len(hexadecimal), 8)]
    return str(ipaddress.ip_address(b"".join(words)))
