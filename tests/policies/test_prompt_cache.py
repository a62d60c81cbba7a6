"""The cache of encoded prompts."""

from __future__ import annotations

import torch

from tempflow_fast.policies.prompt_cache import PromptCache


def test_prompt_cache_forgets_what_was_not_asked_for():
    cache = PromptCache(limit=3 * 8)
    for prompt in "abc":
        cache.put(prompt, ({"text": torch.zeros(2)}, 0))
    assert cache.get("a") is not None
    cache.put("d", ({"text": torch.zeros(2)}, 0))
    assert [cache.get(prompt) is None for prompt in "abcd"] == [False, True, False, False]
