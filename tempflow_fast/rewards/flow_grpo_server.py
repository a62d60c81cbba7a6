"""A client for reward servers that speak Flow-GRPO's wire format: JPEG files in a pickle, and a pickle back."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from . import wire
from .http import exchange
from .jpeg import jpeg
from .remote import Remote

QUALITY = 75
"""Of JPEG files, Pillow's default, as Flow-GRPO's client sends them."""


class FlowGrpoServer(Remote):
    """A reward of a server made for Flow-GRPO.

    Reading a pickle can run whatever the other side wants. This client reads numbers, texts and containers and refuses
    anything else, which closes the known way in; who is between the two can still make up scores.
    """

    name = "flow_grpo_server"
    range = (-float("inf"), float("inf"))

    def __init__(
        self, urls: str | Sequence[str], trust_pickle: bool = False, field: str = "outputs", **settings: Any
    ) -> None:
        """As `Remote`, but that such servers cannot be asked for their health.

        Args:
            urls: of the servers.
            trust_pickle: must be true: the servers, and the network to them, are trusted with pickles.
            field: which scores of the answer to take: "outputs", or "scores" of a GenEval server.
            settings: as `Remote`.
        """
        if trust_pickle is not True:
            reason = (
                "trust_pickle must be true, since this format is a pickle, which can carry code: use your own servers"
            )
            raise ValueError(f"flow_grpo_server: {reason}; got {trust_pickle!r}")
        self.field = field
        super().__init__(urls, **settings)

    def check(self) -> None:
        """Nothing: these servers answer to scoring alone."""

    def pack(self, levels: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> bytes:
        """The body of a request, for servers that want prompts and for those that want metadata."""
        files = [jpeg(image, QUALITY) for image in levels]
        return pickle.dumps(
            {"images": files, "prompts": [*prompts], "meta_datas": [*metadata], "only_strict": False}, protocol=4
        )

    def ask(self, url: str, body: bytes, num: int) -> list[float]:
        """One server's scores."""
        answer = plain(exchange(url + "/", body, self.timeout))
        try:
            scores = [float(score) for score in answer[self.field]]
        except (KeyError, TypeError) as error:
            raise ValueError(f"answer must hold a list {self.field!r}") from error
        return wire.checked(scores, num)


def plain(body: bytes) -> Any:
    """A pickle of numbers, texts and containers; ValueError for one that holds, or asks for, anything else."""
    try:
        return _Plain(io.BytesIO(body)).load()
    except Exception as error:
        raise ValueError(f"answer must be a pickle of plain data: {error}") from error


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"it asks for {module}.{name}")
