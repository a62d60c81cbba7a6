"""tempflow-fast serve-rewards."""

from __future__ import annotations

from dataclasses import dataclass

import tyro


@dataclass(frozen=True, kw_only=True)
class ServeRewards:
    """Serves a reward to training runs on other machines, which use the reward `remote`; Ctrl-C stops it."""

    reward: tyro.conf.Positional[str]
    """The reward: a name, module:function, several as a=1.0,b=0.5, or JSON with settings."""
    host: str = "127.0.0.1"
    """Address to listen on. Any other than this machine's own needs a secret in the environment variable
    TEMPFLOW_FAST_TOKEN, here and where the clients run; 0.0.0.0 lets other machines connect."""
    port: int = 18080
    """Port to listen on; 0: any free port."""

    def __call__(self) -> int:
        from ..rewards.server import serve_rewards

        serve_rewards(self.reward, self.host, self.port)
        return 0
