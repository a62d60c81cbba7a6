"""Pipelines without a row are tried, rows come from other packages, and a policy that differs is found out."""

from __future__ import annotations

import json

import pytest
import torch
from packaging.version import Version
from support import ROOT
from support.families import FAMILIES
from support.pipelines import silent

from tempflow_fast import linear_sigmas
from tempflow_fast.cli import main
from tempflow_fast.policies import POLICIES, DiffusersPolicy, Family
from tempflow_fast.policies.families import UNSUPPORTED, token_norm
from tempflow_fast.policies.proof import admit
from tempflow_fast.run.load import load_policy


def saved(name, directory):
    torch.manual_seed(0)
    FAMILIES[name].build(directory / "tokenizer").save_pretrained(directory / "model")
    return str(directory / "model")


def unlisted(monkeypatch, pipeline):
    monkeypatch.delitem(POLICIES, pipeline)


def test_a_pipeline_without_a_row_is_tried_and_admitted(tmp_path, monkeypatch):
    unlisted(monkeypatch, "ChromaPipeline")
    policy = load_policy(saved("chroma", tmp_path), resolution=32, max_text_length=9)
    assert not policy.listed
    assert repr(policy).startswith("ChromaPolicy(")
    assert policy.guides(2.0)


def test_a_pipeline_that_cannot_be_explained_is_refused_by_name(tmp_path, monkeypatch):
    unlisted(monkeypatch, "Lumina2Pipeline")
    message = r"Lumina2Policy: pipeline must be one whose guidance is u \+ g \(c - u\), .* got another combination"
    with pytest.raises(ValueError, match=message):
        load_policy(saved("lumina2", tmp_path), resolution=32)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_pipeline_that_no_policy_can_follow_is_refused_with_the_reason(tmp_path, name):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(ValueError, match=f"pipeline a policy can follow, got a {name}: {UNSUPPORTED[name]}"):
        load_policy(tmp_path)
    assert f"- `{name}`: " in (ROOT / "docs" / "models.md").read_text()


def test_pipelines_that_no_policy_can_follow_exist():
    import diffusers

    newer = {"QwenImage21Pipeline"} if Version(diffusers.__version__) < Version("0.41") else set()
    assert {name for name in UNSUPPORTED if not hasattr(diffusers, name)} == newer


def test_what_differs_is_named(tmp_path):
    class Cut(DiffusersPolicy):
        family = Family(pipeline="ChromaPipeline", text_length=9)

        def _predict(self, layout, inputs):
            return 1.001 * super()._predict(layout, inputs)

    policy = Cut(silent(FAMILIES["chroma"].build(tmp_path)), 32)
    with pytest.raises(ValueError, match="Cut: pipeline must be one that the policy reproduces to 1e-05, got latents"):
        admit(policy)


def test_the_command_shows_what_was_learnt_and_what_matches(tmp_path, capsys):
    model = saved("chroma", tmp_path)
    capsys.readouterr()
    assert main(["check-model", model, "--resolution", "32", "--max-text-length", "9"]) == 0
    out, err = capsys.readouterr()
    assert err == ""  # no progress bars of the pipeline
    assert "time: ChromaTransformer2DModel takes sigma" in out
    assert out.count("matches") == 6
    assert "DIFFERS" not in out


def test_the_command_fails_where_something_differs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(DiffusersPolicy, "sigmas", lambda self, num_steps: linear_sigmas(num_steps, shift=9.0))
    model = saved("chroma", tmp_path)
    assert main(["check-model", model, "--resolution", "32", "--max-text-length", "9"]) == 2
    assert "DIFFERS" in capsys.readouterr().out


def test_a_row_with_a_wrong_guidance_is_refused(tmp_path):
    class Wrong(DiffusersPolicy):
        family = Family(pipeline="ChromaPipeline", text_length=9, combine=token_norm)

    with pytest.raises(ValueError, match="Wrong: pipeline must be one whose guidance is"):
        Wrong(silent(FAMILIES["chroma"].build(tmp_path)), 32).encode(["a"], guided=True)
