"""A stand-in for stream capture; a test that breaks the rules of capture fails."""

from __future__ import annotations

import pytest
from support.recording import RecordingDevice


@pytest.fixture
def device():
    recorder = RecordingDevice()
    yield recorder
    assert not recorder.violations
