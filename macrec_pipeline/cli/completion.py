"""What the shell suggests when Tab is pressed: data sets, assets, sections and settings.

Every function takes the incomplete word and returns the candidates that begin with it, with a short help for the
shells that show one. They import nothing heavy, because the shell waits for them.
"""

from collections.abc import Iterable
from textwrap import shorten

from macrec_pipeline.config.reference import all_settings, setting_sections
from macrec_pipeline.datasets import dataset_names

ASSETS = (
    "raw_interactions",
    "raw_items",
    "interactions",
    "items",
    "quarantine",
    "histories",
    "text_embeddings",
    "image_embeddings",
    "sasrec",
    "pseudo_labels",
    "quantizer",
    "semantic_ids",
    "recommender",
    "predictions",
    "evaluation_report",
    "champion_comparison",
    "refitted_recommender",
    "champion_refit",
    "registered_model",
)
"""The assets of a full run, upstream before downstream, without the seconds that importing Dagster takes."""

_HELP_WIDTH = 70


def complete_dataset(incomplete: str) -> list[tuple[str, str]]:
    """Return the data sets."""
    return _beginning_with(incomplete, [(name, "data set") for name in dataset_names()])


def complete_asset(incomplete: str) -> list[tuple[str, str]]:
    """Return the assets of a full run."""
    return _beginning_with(incomplete, [(name, "asset") for name in ASSETS])


def complete_assignment(incomplete: str) -> list[tuple[str, str]]:
    """Return `name=` for every setting; after the `=`, the values of a setting that has few."""
    name, equals, _ = incomplete.partition("=")
    if equals:
        choices = next((setting.choices for setting in all_settings() if setting.name == name), ())
        found = [(f"{name}={choice}", f"value of {name}") for choice in choices]
    else:
        # The name of the preset is only a label: the data set file chooses the preset.
        found = [(f"{each.name}=", each.description) for each in all_settings() if each.name != "preset"]
    return _beginning_with(incomplete, found)


def complete_settings_argument(incomplete: str) -> list[tuple[str, str]]:
    """Return sections and data sets; after a dot, the settings of the section."""
    found = [(section.name, section.description) for section in setting_sections()]
    found += [(name, "data set") for name in dataset_names()]
    if "." in incomplete:
        found += [(setting.name, setting.description) for setting in all_settings()]
    return _beginning_with(incomplete, found)


def _beginning_with(incomplete: str, candidates: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the candidates that begin with a word; their help fits on one line, as shells need it."""
    return [
        (candidate, shorten(text, _HELP_WIDTH, placeholder=" ..."))
        for candidate, text in dict(candidates).items()
        if candidate.startswith(incomplete)
    ]
