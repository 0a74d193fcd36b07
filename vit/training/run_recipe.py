"""The recipe of a run with its data set: what must not change on resuming, and what a replayed step must have."""

from typing import Any

from vit.config.recipe import recipe_of
from vit.config.schema import Config
from vit.data.loader import TrainData


def run_recipe(cfg: Config, data: TrainData) -> dict[str, Any]:
    """All settings that affect the result, the fingerprint of the training set, and the decoder that is used."""
    fingerprint = {f"data.{name}": value for name, value in data.beton.fingerprint.items()}
    return recipe_of(cfg) | fingerprint | {"data.decoder": data.decoder}
