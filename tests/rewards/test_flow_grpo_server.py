"""Servers that use Flow-GRPO's format."""

import pickle
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support.servers import ENTRIES, TEXTS, images, running

from tempflow_fast.rewards import RewardError, get_reward
from tempflow_fast.rewards.flow_grpo_server import plain


class PickleHandler(BaseHTTPRequestHandler):
    """A server of Flow-GRPO's kind: scores are the sizes of the files."""

    def do_POST(self) -> None:
        data = pickle.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(data)
        body = self.server.answer or pickle.dumps({"outputs": [len(file) / 1e4 for file in data["images"]]})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args) -> None:
        pass


def test_flow_grpos_format_is_read_without_running_what_it_carries(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), PickleHandler)
    server.seen, server.answer = [], None
    url = f"http://127.0.0.1:{server.server_address[1]}"
    with pytest.raises(
        ValueError, match="trust_pickle must be true, since this format is a pickle, which can carry code"
    ):
        get_reward({"flow_grpo_server": {"urls": url}})
    with running(server):
        settings = {"urls": url, "trust_pickle": True, "batch_size": 4, "num_rounds": 1}
        scores = get_reward({"flow_grpo_server": settings})(images(), TEXTS, ENTRIES)
        assert scores.shape == (10,)
        assert (scores > 0).all()
        assert [text for data in server.seen for text in data["prompts"]] == TEXTS
        assert [entry for data in server.seen for entry in data["meta_datas"]] == ENTRIES
        assert all(file.startswith(b"\xff\xd8") for data in server.seen for file in data["images"])

        class Trap:
            def __reduce__(self):
                return (open, (str(tmp_path / "owned"), "w"))

        server.answer = pickle.dumps({"outputs": [Trap()] * 4})
        with pytest.raises(RewardError, match=r"answer must be a pickle of plain data, got .*: it asks for _?io.open"):
            get_reward({"flow_grpo_server": settings})(images(), TEXTS, ENTRIES)
        assert not (tmp_path / "owned").exists()
    assert plain(pickle.dumps({"scores": [1.0, 0], "group": {"a": [True, None]}})) == {
        "scores": [1.0, 0],
        "group": {"a": [True, None]},
    }
