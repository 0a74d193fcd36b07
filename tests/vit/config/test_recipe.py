"""The differences between the settings of a run and of its continuation."""

import json
from pathlib import Path
from typing import Any

import pytest

from vit.config.recipe import STREAM_SETTINGS, check_recipe, recipe_of
from vit.config.schema import Config
from vit.config.user_error import UserError

RUN = Path("runs/a")


def test_changed_new_and_removed_settings_are_listed() -> None:
    """Also after a round trip through JSON; without settings that are equal or allowed to change."""
    values: dict[str, Any] = {"optim.lr": 1e-3, "augment.mean": [0.485, 0.456], "data.sha256": "ab", "old": 1}
    saved = json.loads(json.dumps(values))
    check_recipe(RUN, saved, values, [], has_begun=True)
    current = json.loads(json.dumps(values)) | {"optim.lr": 2e-3, "new": None}
    del current["old"]
    with pytest.raises(UserError) as error:
        check_recipe(RUN, saved, current, ["lr", "optim"], has_begun=True)  # only whole names match
    assert str(error.value).splitlines() == [
        "runs/a has different settings:",
        "  new: (absent) in the run, None now",
        "  old: 1 in the run, (absent) now",
        "  optim.lr: 0.001 in the run, 0.002 now",
        "Use a new run folder, or accept the changes with --override-resume new old optim.lr",
    ]
    check_recipe(RUN, saved, current, ["optim.lr", "old", "new"], has_begun=True)


@pytest.mark.parametrize("name", STREAM_SETTINGS)
def test_a_run_that_has_begun_keeps_the_images_of_its_steps(name: str) -> None:
    """A larger batch at the same step would count half of the images twice; --override-resume does not allow it."""
    before = recipe_of(Config()) | {"data.samples": 10}
    now = before | {name: 77}
    check_recipe(RUN, before, now, [name], has_begun=False)
    message = (
        rf"(?s)^runs/a has different settings.*{name}: .* in the run, 77 now\n{name} determines.*--init_from runs/a"
    )
    with pytest.raises(UserError, match=message):
        check_recipe(RUN, before, now, [name], has_begun=True)
