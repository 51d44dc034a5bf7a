"""`train.recipe`: settings that were searched for together; benchmarks/RESULTS.md has what each gave beside others."""

from collections.abc import Mapping
from typing import Any, Literal

RECIPES: dict[str, dict[str, Any]] = {
    # New weights that shall write what they have not read: the best validation loss in little time.
    "generalise": {
        "optimizer": "muon",
        "learning_rate": 3.0e-3,
        "final_share": 0.05,
        "muon_learning_rate": 2.0e-2,
        "beta2": 0.99,
        "schedule": "cosine",
        "weight_decay": 0.1,
        "batch_size": 4,
        "sequence_length": 128,
    },
    # New weights that shall know a text by heart: no dropout, no weight decay, and a rate that falls to nothing.
    "memorise": {
        "optimizer": "muon",
        "learning_rate": 3.0e-3,
        "final_share": 0.0,
        "muon_learning_rate": 2.0e-2,
        "beta2": 0.99,
        "schedule": "linear",
        "weight_decay": 0.0,
        "batch_size": 8,
        "sequence_length": 128,
    },
    # Weights that have learned a language already: small steps with AdamW, a few times over the text.
    "finetune": {
        "optimizer": "adamw",
        "learning_rate": 3.0e-5,
        "final_share": 0.0,
        "muon_learning_rate": 2.0e-2,
        "beta2": 0.999,
        "schedule": "cosine",
        "weight_decay": 0.01,
        "batch_size": 8,
        "sequence_length": 256,
    },
}
DEFAULT: Literal["generalise"] = "generalise"
DROP_RATES = {"memorise": 0.0}  # the others leave the model its own
CHOSEN = (*RECIPES[DEFAULT].keys() - {"final_share"}, "min_learning_rate")  # keys of `train` that null leaves to it


def with_recipe(train: Any) -> Any:
    """Section `train` with the recipe's value for each key of it that is null or missing.

    What is no section, or names no known recipe, is left to the schema.
    """
    recipe = recipe_of(train)
    if recipe is None:
        return train
    settings = dict(RECIPES[recipe])
    final_share = settings.pop("final_share")
    filled = {**settings, **{key: value for key, value in train.items() if value is not None or key not in CHOSEN}}
    if "min_learning_rate" not in filled:
        final = _number(filled["learning_rate"]) * final_share
        filled["min_learning_rate"] = float(f"{final:.12g}")  # 0.003 / 20 as people write it
    return filled


def recipe_of(train: Any) -> str | None:
    """The recipe that a section `train` names; None where it names none that there is."""
    name = train.get("recipe", DEFAULT) if isinstance(train, Mapping) else None
    return name if isinstance(name, str) and name in RECIPES else None


def _number(value: Any) -> float:
    """YAML reads 1e-3 as text. 0 for what the schema will refuse, so that it is refused once."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return number if 0 < number <= 10 else 0.0
