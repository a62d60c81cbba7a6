"""A reward server may restart in the middle of a run."""

import threading
import time

import torch
from support.servers import ENTRIES, EXPECTED, TEXTS, FaultyServer, client, images, running
from support.tiny import PROMPTS, TinyPolicy, brightness

from tempflow_fast import GRPOConfig, grpo_step
from tempflow_fast.rewards import get_reward
from tempflow_fast.rewards.remote import Remote


def test_a_server_may_restart_in_the_middle_of_a_run():
    with running(FaultyServer()) as server:
        port, remote = server.server_address[1], client(server, pause=0.1)
        assert torch.allclose(remote(images(), TEXTS, ENTRIES), EXPECTED)
    again = []

    def restart() -> None:
        time.sleep(0.4)
        again.append(FaultyServer(port=port))
        again[0].serve_forever(0.01)

    thread = threading.Thread(target=restart, daemon=True)
    thread.start()
    try:
        assert torch.allclose(remote(images(), TEXTS, ENTRIES), EXPECTED)
    finally:
        again[0].shutdown()
        thread.join()
        again[0].server_close()


def metrics_of_a_run(remote: Remote) -> list[dict[str, float]]:
    """What four iterations with a remote reward report, but for their seconds."""
    policy = TinyPolicy()
    optimizer, config = torch.optim.SGD(policy.parameters(), lr=0.1), GRPOConfig(num_steps=3, num_seeds=1, max_batch=4)
    rows = [grpo_step(policy, PROMPTS, get_reward(remote), optimizer, config, seed=number) for number in range(4)]
    return [{name: float(value) for name, value in row.items() if "seconds" not in name} for row in rows]


def test_a_run_over_a_server_that_restarts_is_the_run_over_one_that_does_not():
    """The server dies over a request of the second of four iterations, nine requests each, and comes back."""
    with running(FaultyServer(reward=brightness)) as server:
        expected = metrics_of_a_run(client(server))
        assert len(server.played) == 1 + 4 * 9
    lives = [FaultyServer(*["none"] * 11, "die", reward=brightness)]

    def live_twice() -> None:
        lives[0].serve_forever(0.01)
        lives[0].server_close()
        time.sleep(0.3)
        lives.append(FaultyServer(reward=brightness, port=lives[0].server_address[1]))
        lives[1].serve_forever(0.01)

    thread = threading.Thread(target=live_twice, daemon=True)
    thread.start()
    try:
        assert metrics_of_a_run(client(lives[0], pause=0.1)) == expected
    finally:
        lives[-1].shutdown()
        thread.join()
        lives[-1].server_close()
    assert [len(life.played) for life in lives] == [1 + 12, 36 - 11], "both of them were asked"
