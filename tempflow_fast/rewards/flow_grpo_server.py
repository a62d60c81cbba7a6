"""A client for reward servers that speak Flow-GRPO's wire format: JPEG files in a pickle, and a pickle back."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pickletools import genops
from typing import Any

from torch import Tensor

from ..errors import fail, require
from . import wire
from .base import one_line
from .http import exchange
from .jpeg import jpeg
from .remote import Remote

QUALITY = 75
"""Quality of the JPEG files: Pillow's default, as in Flow-GRPO's client."""


class FlowGrpoServer(Remote):
    """A reward of a server made for Flow-GRPO.

    Reading a pickle can run any code that the other side chooses. This client reads numbers, texts and containers and
    refuses everything else, which closes the known attack; anyone between client and server can still forge scores.
    """

    name = "flow_grpo_server"
    range = (-float("inf"), float("inf"))

    def __init__(
        self, urls: str | Sequence[str], trust_pickle: bool = False, field: str = "outputs", **settings: Any
    ) -> None:
        """As `Remote`, except that such servers have no health check.

        Args:
            urls: of the servers.
            trust_pickle: must be true: the servers, and the network to them, are trusted with pickles.
            field: which scores of the answer to take: "outputs", or "scores" of a GenEval server.
            settings: as for `Remote`.

        Raises:
            ValueError: if `trust_pickle` is not true, and as `Remote`.
        """
        expected = "true, since this format is a pickle, which can carry code: use it with your own servers"
        require(trust_pickle is True, "flow_grpo_server", "trust_pickle", expected, repr(trust_pickle))
        self.field = field
        super().__init__(urls, **settings)

    def check(self) -> None:
        """Does nothing: these servers only score."""

    def pack(self, levels: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> bytes:
        """The body of a request, for servers that read prompts and for those that read metadata.

        Args:
            levels: uint8 [R, 3, H, W] on the host.
            prompts: R texts.
            metadata: R entries of the prompt set.
        """
        files = [jpeg(image, QUALITY) for image in levels]
        return pickle.dumps(
            {"images": files, "prompts": [*prompts], "meta_datas": [*metadata], "only_strict": False}, protocol=4
        )

    def ask(self, url: str, body: bytes, num: int) -> list[float]:
        """One server's scores.

        Args:
            url: of the server.
            body: of the request.
            num: number of images in it.

        Raises:
            ValueError: if the answer has another form.
            PassingError, RefusalError: as `exchange`.
        """
        answer = plain(exchange(url + "/", body, self.request_timeout))
        has_scores = isinstance(answer, dict) and isinstance(answer.get(self.field), list)
        # An answer is not shown: a few bytes can describe a structure that fills the memory once it is written out.
        got = f"a {type(answer).__name__}"
        require(has_scores, "flow_grpo_server", "answer", f"a mapping with a list {self.field!r}", got)
        return wire.checked(answer[self.field], num)


def plain(body: bytes) -> Any:
    """Reads a pickle without running any code.

    Args:
        body: a pickle of numbers, texts and containers.

    Raises:
        ValueError: if it holds, or asks for, anything else.
    """
    try:
        for opcode, argument, _ in genops(body):
            if "PUT" in opcode.name and int(argument or 0) >= len(body):
                raise ValueError(f"it numbers an object {argument}")  # and would make room for as many
        return _Plain(io.BytesIO(body)).load()
    except Exception as error:
        fail("flow_grpo_server", "answer", "a pickle of plain data", f"one that is not: {one_line(error)}")


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"it asks for {module}.{name}")
