"""Addresses to listen on and to call, and what to say of one that cannot be had."""

import errno
import grp
import ipaddress
import os
import pwd
import re
import socket
import stat
from pathlib import Path
from typing import Final

from monitor.errors import PortError

SOCKET_BYTES: Final = 107
"""The longest path of a socket file, in bytes: what ``sockaddr_un`` has room for."""
_SCHEME: Final = "ipc://"

_FIXES = {
    errno.EADDRINUSE: "Stop what listens there, or choose another port.",
    errno.EACCES: "Choose a port above 1023.",
    errno.EADDRNOTAVAIL: "Choose an address of this host; 127.0.0.1 is reached from this host only.",
}

_SOCKETS: Final = ("unix:", "unix-abstract:", "vsock:")
_RESOLVER: Final = re.compile(r"(ipv4|ipv6|dns):(//[^/]*/)?")
_HOST: Final = re.compile(r"\[([^\]]*)\](?::[^:]*)?|([^:]*)(?::[^:]*)?|(.*)")
"""``[address]:port``, ``host:port``, either without its port, or an IPv6 address without brackets."""


def join_address(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Tell whether an interface is reached from this host only; no name but localhost is known to be.

    Args:
        host: Name or address of the interface.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.lower().rstrip(".")
        return name == "localhost" or name.endswith(".localhost")
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def stays_here(target: str) -> bool:
    """Tell whether a call to this target stays on this host, where no proxy of the environment can lie between.

    Args:
        target: As gRPC takes it: ``host:port``, ``unix:SOCKET``, ``ipv4:…``, ``ipv6:…`` or ``dns:…``.
    """
    if target.startswith(_SOCKETS):
        return True
    found = _HOST.fullmatch(_RESOLVER.sub("", target))
    host = next(filter(None, found.groups()), "").lower().rstrip(".") if found else ""
    return is_loopback(host) or host in ("", "0.0.0.0", "::", socket.gethostname().lower())


def port_error(what: str, host: str, port: int, error: OSError) -> PortError:
    """The error that names the address, the reason and the remedy.

    Args:
        what: Who wanted to listen, as the subject of the sentence.
        host: Name or address of the interface.
        port: The port.
        error: What the system said.
    """
    # A resolver's error has numbers of its own, negative ones.
    code = error.errno or 0
    reason = os.strerror(code) if code > 0 else error.strerror
    return PortError(
        f"{what} cannot listen on {join_address(host, port)}: {reason}.",
        _FIXES.get(code, "Choose an address that this host can listen on."),
    )


def socket_file(endpoint: str) -> Path:
    """The path of a socket file, ``ipc:///PATH``.

    Raises:
        PortError: It is none, its path is too long, or something else is there.
    """
    path = Path(endpoint.removeprefix(_SCHEME))
    if not endpoint.startswith(_SCHEME + "/") or "\0" in endpoint:
        raise PortError(f"{endpoint!r} is not a socket file.", "Write it as ipc:///run/plumbob/monitor.sock.")
    if (length := len(os.fsencode(path))) > SOCKET_BYTES:
        raise PortError(
            f"Cannot listen on {path}: the path of a socket file has at most {SOCKET_BYTES} bytes, this one {length}.",
            "Choose a shorter one, such as ipc:///run/plumbob/monitor.sock.",
        )
    try:
        if os.path.lexists(path) and not stat.S_ISSOCK(path.lstat().st_mode):
            raise PortError(f"{path} exists and is not a socket.", "Choose another socket file.")
    except OSError as error:
        raise PortError(f"Cannot listen on {path}: {error.strerror}.", "Choose another socket file.") from error
    return path


def require_socket(endpoint: str) -> None:
    """Check that a monitor may listen at a socket file, for an engine that starts before it or after.

    That of another user's monitor may be closed to this user: what keeps a running engine from it is told then, since
    the monitor decides it (:mod:`monitor.engine.reachability`).

    Raises:
        PortError: None can, and the reason.
    """
    path = socket_file(endpoint)
    folder = path.parent
    if not folder.is_dir():
        raise PortError(
            f"The directory of the socket file {path} is missing.",
            "Make it, or start the monitor first, which does; engine and monitor are to see the same directory.",
        )
    mine = folder.stat().st_uid == os.geteuid() or bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    if mine and not path.exists() and not os.access(folder, os.W_OK | os.X_OK):
        raise PortError(
            f"No monitor can listen on {path}: its directory may not be written to.", "Choose another socket file."
        )


def require_free(what: str, host: str, port: int) -> None:
    """Bind an address for a moment, for a server that itself would log its failure and not say why.

    Raises:
        PortError: It cannot be bound.
    """
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as attempt:
            # As servers do; without it, connections that were closed a moment ago count as use.
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            attempt.bind(target)
    except UnicodeError as error:
        # What the resolver makes of a name that no host can have.
        raise PortError(
            f"{what} cannot listen on {join_address(host, port)}: no such host.", "Check the host that it was given."
        ) from error
    except OSError as error:
        raise port_error(what, host, port, error) from error


def user_name(uid: int) -> str:
    """A user as ``ls`` shows it, with the number: ``root (0)``; the number alone where it has no name here."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """A group as :func:`user_name` has users."""
    try:
        return f"{grp.getgrgid(gid).gr_name} ({gid})"
    except KeyError:
        return str(gid)


def file_access(path: Path) -> str:
    """Say in words which users may read, write or connect to a file.

    Raises:
        OSError: It is not there, or a directory on the way lets this process through no further.
    """
    found = path.stat()
    mode = stat.S_IMODE(found.st_mode)
    return f"user {user_name(found.st_uid)}, group {group_name(found.st_gid)}, mode {mode:04o}"
