"""tempflow-fast serve-rewards."""

from __future__ import annotations

from dataclasses import dataclass

import tyro


@dataclass(frozen=True, kw_only=True)
class ServeRewards:
    """Serves a reward to training runs elsewhere, which name it `remote`; Ctrl-C ends it."""

    reward: tyro.conf.Positional[str]
    """A reward's name, module:function, several as a=1.0,b=0.5, or JSON with settings."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for other machines, all of which may then ask: there is no password."""
    port: int = 18080
    """Port to listen at; 0: any free one."""

    def __call__(self) -> int:
        from ..rewards.server import serve_rewards

        serve_rewards(self.reward, self.host, self.port)
        return 0
