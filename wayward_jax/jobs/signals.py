"""Signals that ask a program to stop, and how a thread hears of them."""

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence

# Schedulers send SIGTERM or SIGUSR1 some time before they end a job, and a terminal that is closed
# sends SIGHUP.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def stopping_signals() -> list[signal.Signals]:
    """The signals that ask to stop, without those that the process was started to ignore."""
    return [each for each in STOPPING if signal.getsignal(each) is not signal.SIG_IGN]


@contextlib.contextmanager
def listening(
    numbers: Sequence[signal.Signals], on_signal: Callable[[int], None]
) -> Iterator[None]:
    """Calls a function with each signal instead of its handler for a while.

    Python runs handlers of signals only once the main thread returns from waiting for the devices.
    So a separate thread listens here, to the socket that Python writes the signals' numbers to.
    """

    def listen() -> None:
        while number := ours.recv(1):
            on_signal(number[0])

    ours, pythons = socket.socketpair()
    pythons.setblocking(False)
    with ours, pythons:
        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        handlers = {number: signal.signal(number, lambda *_: None) for number in numbers}
        fd = signal.set_wakeup_fd(pythons.fileno())
        try:
            yield
        finally:
            signal.set_wakeup_fd(fd)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            pythons.shutdown(socket.SHUT_WR)
            listener.join()
