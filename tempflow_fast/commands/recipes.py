"""tempflow-fast recipes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Recipes:
    """Lists the recipes: what each one trains, where its settings come from, and how it differs from the defaults."""

    def __call__(self) -> int:
        from .. import extensions
        from ..settings.recipes import RECIPES, find_recipe
        from ..settings.run import TrainConfig, differences

        for name in [*RECIPES, *extensions.installed(extensions.RECIPES)]:
            recipe = find_recipe(name)
            print(f"{name}\n{_indented(recipe.__doc__ or '')}")
            for setting, (_, value) in differences(TrainConfig(), recipe()).items():
                print(f"        {setting} = {value}")
            print()
        print("To start one: tempflow-fast train --recipe NAME --output RUN. To change a setting: --setting value.")
        return 0


def _indented(text: str) -> str:
    return "\n".join(f"    {line.strip()}".rstrip() for line in text.strip().splitlines())
