"""GenEval's table of scores."""

import pytest
from support.geneval import SINGLE, THREE, TWO

from tempflow_fast.rewards.geneval.table import markdown, score_table


def test_the_table_is_the_mean_of_the_tasks():
    metadata = [SINGLE, SINGLE, TWO, TWO, TWO, THREE]
    table = score_table(metadata, [1, 0, 0, 0, 0, 1])
    assert {task: row["accuracy"] for task, row in table.items()} == {
        "single_object": 0.5,
        "two_object": 0.0,
        "counting": 1.0,
        "overall": 0.5,
    }
    assert table["single_object"] == {"accuracy": 0.5, "num_images": 2, "num_prompts": 1, "prompt_accuracy": 1.0}
    assert table["overall"]["image_accuracy"] == pytest.approx(1 / 3)
    assert table["overall"]["prompt_accuracy"] == pytest.approx(2 / 3)
    assert "| two_object | 3 | 0.00% | 1 | 0.00% |" in markdown(table)
    with pytest.raises(ValueError, match="one number per image, got 1 for 6"):
        score_table(metadata, [1])


def test_rows_of_one_prompt_may_have_fields_of_their_own():
    rows = [{**SINGLE, "id": number} for number in range(4)]
    assert score_table([*rows, TWO], [0, 1, 0, 0, 0])["overall"] == {
        **{"accuracy": 0.125, "image_accuracy": 0.2},
        **{"num_images": 5, "num_prompts": 2, "prompt_accuracy": 0.5},
    }
