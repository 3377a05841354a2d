"""The way from all ranks to the keepers and back: ZeroMQ, which encrypts and authenticates (CURVE).

Every rank makes a pair of keys, of which the public one goes through Horovod to all others. So a
keeper knows who speaks from the key, and nobody else is heard. Sockets belong to one thread.
"""

import logging
import socket
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress

import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import parse_monitor_message

from horovod_detox.watch.beats import MOST_BYTES

UNTIL_KNOWN = 30.0
"""Seconds that a rank may take longer than others to hear of all ranks."""
LINGER = 200
"""Milliseconds that a process may spend at its end on what it has not sent yet."""
MOST_PENDING = 100
LOOPBACK = "127.0.0.1"

log = logging.getLogger("horovod_detox")


class Hub:
    """What a keeper hears the other ranks by.

    Args:
        address: of this host, to listen on.
        context: of ZeroMQ.

    Attributes:
        endpoints: where the others find it: for what is usual, and for what is urgent.
        public_key: by which they know that it is this keeper.
        socket: of what is usual, which is received now and then.
        alarm: of what is urgent, which is received at once.
        monitor: from which it is known whose connections have ended.
        ranks: by public key, who may speak.
    """

    def __init__(self, address: str, context: zmq.Context) -> None:
        self.ranks: dict[str, int] = {}
        self._may_begin = threading.Event()
        self._guard = ThreadAuthenticator(context)
        self._guard.start()
        self._guard.configure_curve_callback("*", self)
        keys = zmq.curve_keypair()
        self.public_key = keys[0].decode()
        (self.socket, usual), (self.alarm, urgent) = (
            _listen(address, keys, context) for _ in range(2)
        )
        self.endpoints = (usual, urgent)
        self.monitor = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._identities: dict[int, bytes] = {}
        self._told: deque[bytes] = deque(maxlen=MOST_PENDING)
        self._connections: dict[int, int] = {}
        self._told_of_strangers = False

    def admit(self, keys: Sequence[str]) -> None:
        """Hear the owners of public keys, which are those of all ranks, and nobody else."""
        self.ranks = {key: rank for rank, key in enumerate(keys)}
        self._may_begin.set()

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether the owner of a public key may speak, on the authenticator's thread."""
        self._may_begin.wait(UNTIL_KNOWN)  # who has met all ranks earlier than this one comes early
        if key.decode() in self.ranks:
            return True
        if not self._told_of_strangers:
            self._told_of_strangers = True
            log.warning(
                "a process that is not a rank of this job tried to connect to it, and was refused: "
                "see who can reach the ports of host %s",
                socket.gethostname(),
            )
        return False

    def receive(self) -> Iterator[tuple[int, bytes]]:
        """Yield who has told what, usual or urgent."""
        for socket_ in (self.socket, self.alarm):
            with suppress(zmq.Again):
                while True:
                    frames = socket_.recv_multipart(zmq.NOBLOCK, copy=False)
                    rank = self.ranks[str(frames[-1].get("User-Id"))]
                    if socket_ is self.socket:
                        self._know(rank, frames[0].bytes, int(frames[-1].get(zmq.SRCFD)))
                    yield rank, frames[-1].bytes

    def _know(self, rank: int, identity: bytes, connection: int) -> None:
        """Remember how a rank is reached; tell it what was told before."""
        self._connections[connection] = rank
        if self._identities.get(rank) != identity:
            self._identities[rank] = identity
            for message in self._told:
                self._send(rank, message)

    def ended(self) -> Iterator[int]:
        """Yield the ranks whose connections have ended."""
        with suppress(zmq.Again):
            while True:
                event = parse_monitor_message(self.monitor.recv_multipart(zmq.NOBLOCK))
                rank = self._connections.pop(int(event["value"]), None)
                if rank is not None:
                    yield rank

    def tell(self, message: bytes, is_lasting: bool) -> None:
        """Send something to all ranks; what is lasting also to those that are heard later."""
        if is_lasting:
            self._told.append(message)
        for rank in self._identities:
            self._send(rank, message)

    def _send(self, rank: int, message: bytes) -> None:
        with suppress(zmq.Again):
            self.socket.send_multipart([self._identities[rank], message], zmq.NOBLOCK)

    def close(self) -> None:
        """Hear nobody any more."""
        self.socket.disable_monitor()
        self.monitor.close(linger=0)
        self.socket.close()
        self.alarm.close()
        self._guard.stop()


class Spoke:
    """What a rank speaks to a keeper by.

    Args:
        endpoints, public_key: of the keeper's hub.
        keys: the public and the secret key of this rank.
        context: of ZeroMQ.

    Attributes:
        socket: from which there is something to receive.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        public_key: str,
        keys: tuple[bytes, bytes],
        context: zmq.Context,
    ) -> None:
        self.socket, self._alarm = (
            _connect(endpoint, public_key, keys, context) for endpoint in endpoints
        )

    def send(self, message: bytes, is_urgent: bool = False) -> None:
        """Send something, if there is still room for it.

        What is urgent is usual, too: a keeper answers where it has heard the usual.
        """
        for each in (self.socket, self._alarm) if is_urgent else (self.socket,):
            with suppress(zmq.Again):
                each.send(message, zmq.NOBLOCK)

    def receive(self) -> Iterator[bytes]:
        """Yield what the keeper tells."""
        with suppress(zmq.Again):
            while True:
                yield self.socket.recv(zmq.NOBLOCK)

    def close(self) -> None:
        """Speak no more."""
        self.socket.close()
        self._alarm.close()


def _listen(
    address: str, keys: tuple[bytes, bytes], context: zmq.Context
) -> tuple[zmq.Socket, str]:
    """Return a socket that listens on an address, and where it is found."""
    made = context.socket(zmq.ROUTER)
    made.curve_publickey, made.curve_secretkey = keys
    made.curve_server = True
    made.maxmsgsize = MOST_BYTES
    made.linger = LINGER
    made.ipv6 = ":" in address
    host = f"[{address}]" if ":" in address else address
    return made, f"tcp://{host}:{made.bind_to_random_port(f'tcp://{host}')}"


def _connect(
    endpoint: str, public_key: str, keys: tuple[bytes, bytes], context: zmq.Context
) -> zmq.Socket:
    """Return a socket that is connected to one that listens."""
    made = context.socket(zmq.DEALER)
    made.curve_serverkey = public_key.encode()
    made.curve_publickey, made.curve_secretkey = keys
    made.maxmsgsize = MOST_BYTES
    made.sndhwm = MOST_PENDING
    made.linger = LINGER
    made.reconnect_ivl_max = 5000
    made.ipv6 = "[" in endpoint
    made.connect(endpoint)
    return made


def address(host: str, hosts: Sequence[str]) -> str:
    """Return the address of this host that the others reach it by: on the way to one of them.

    >>> address("a", ["a", "a"])
    '127.0.0.1'
    """
    for other in dict.fromkeys(hosts):
        if other == host:
            continue
        with suppress(OSError):
            for family, *_, destination in socket.getaddrinfo(other, 9, type=socket.SOCK_DGRAM):
                with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
                    probe.connect(destination)  # of datagrams, which sends nothing
                    return probe.getsockname()[0]
    return LOOPBACK


def keepers(hosts: Sequence[str]) -> tuple[int, ...]:
    """Return who hears all ranks: rank 0 and, for when that is missing, one on another host.

    >>> keepers(["a", "a", "b", "b"]), keepers(["a", "a"]), keepers(["a"])
    ((0, 2), (0, 1), (0,))
    """
    elsewhere = (rank for rank, host in enumerate(hosts) if host != hosts[0])
    return (0, *[next(elsewhere, 1)][: len(hosts) - 1])
