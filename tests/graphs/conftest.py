"""The stand-in for stream capture, which no test may use against its rules."""

from __future__ import annotations

import pytest
from support.recording import RecordingDevice


@pytest.fixture
def device():
    recorder = RecordingDevice()
    yield recorder
    assert not recorder.violations
