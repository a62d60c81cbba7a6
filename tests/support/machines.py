"""Two machines on this one: network namespaces of Linux, joined by a cable that can be pulled."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

ADDRESSES = ("10.77.0.1", "10.77.0.2")
"""Of the machines, in a network that nothing else can reach."""
CARD = "cable"
"""The name of both network cards."""


class Machines:
    """Two namespaces, each kept by a process that sleeps in it.

    Args:
        keepers: the processes.
    """

    def __init__(self, keepers: list[int]) -> None:
        self._keepers = keepers
        first, second = map(str, keepers)
        _run("ip", "link", "add", CARD, "netns", first, "type", "veth", "peer", CARD, "netns", second)
        for number, address in enumerate(ADDRESSES):
            for command in ("link set lo up", f"address add {address}/24 dev {CARD}", f"link set {CARD} up"):
                _run(*self.on(number, "ip", *command.split()))

    def on(self, number: int, *command: str) -> list[str]:
        """The command line that runs a command on a machine.

        Args:
            number: of the machine, 0 or 1.
            command: its words.
        """
        return ["nsenter", f"--target={self._keepers[number]}", "--net", *command]

    def pull(self) -> None:
        """Cuts the cable: nothing arrives any more, and nobody is told."""
        _run(*self.on(1, "ip", "link", "set", CARD, "down"))


@contextmanager
def two_machines() -> Iterator[Machines]:
    """Two machines until the end of the block.

    Raises:
        OSError: where namespaces are not allowed or the tools are missing; subprocess.CalledProcessError likewise.
    """
    with ExitStack() as stack:
        keepers = []
        for _ in ADDRESSES:
            _run("unshare", "--net", "true")  # an error says why it is not allowed
            command = ["unshare", "--net", "sh", "-c", "echo; exec sleep 3600"]
            keeper = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(keeper.kill)
            assert keeper.stdout is not None
            keeper.stdout.readline()  # it is in its namespace
            keepers.append(keeper.pid)
        yield Machines(keepers)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
