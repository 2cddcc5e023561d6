"""The description of the settings: complete, in words, and true to the models."""

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel

from macrec_pipeline import datasets
from macrec_pipeline.config import PipelineConfig, Section, semantic_ids
from macrec_pipeline.config.reference import GENERAL, all_settings, setting_sections


def _sections(model: type[BaseModel]) -> set[type[BaseModel]]:
    """Return every section class below a base class."""
    return {model, *(each for below in model.__subclasses__() for each in _sections(below))}


ALL_SECTIONS = sorted(_sections(Section) - {Section}, key=lambda section: (section.__module__, section.__name__))
BY_NAME = {setting.name: setting for setting in all_settings()}


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


@pytest.mark.parametrize("section", ALL_SECTIONS, ids=lambda section: section.__name__)
def test_every_setting_has_a_description(section: type[Section]) -> None:
    """Every field of every section is explained in a sentence, in data set files too; so is every section."""
    assert section.__doc__
    assert section.__doc__.partition("\n\n")[0].rstrip().endswith((".", ")."))
    for name, field in section.model_fields.items():
        if _is_section(field.annotation):
            continue  # its class has a docstring
        assert field.description, f"{section.__name__}.{name} has no description"
        assert field.description.endswith("."), f"{section.__name__}.{name}: {field.description!r} is no sentence"
        assert len(field.description) > len("Text."), f"{section.__name__}.{name}"


def test_the_search_for_sections_finds_them() -> None:
    """The test above covers the settings of the pipeline and those of the data set files."""
    assert {PipelineConfig, semantic_ids.Limit, datasets.DatasetSpec, datasets.InteractionsTable} <= set(ALL_SECTIONS)
    assert len(ALL_SECTIONS) > 25


def test_every_field_is_listed_under_its_full_name() -> None:
    """The list has every field of the tree once, with the two settings of each limit."""

    def names(model: type[BaseModel], prefix: str = "") -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            if _is_section(field.annotation):
                found += names(field.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
            elif field.annotation == semantic_ids.Limit | None:
                found += [f"{prefix}{name}.value", f"{prefix}{name}.action"]
            else:
                found.append(f"{prefix}{name}")
        return found

    assert sorted(BY_NAME) == sorted(names(PipelineConfig))
    assert len(BY_NAME) == len(all_settings())


def test_sections_hold_their_settings() -> None:
    """Settings without a section are in the general one; limits are a section of their own."""
    sections = {section.name: section for section in setting_sections()}
    assert [setting.name for setting in sections[GENERAL].settings] == ["preset", "seed", "routes"]
    assert "identity.limits.max_gini.value" in [each.name for each in sections["identity.limits"].settings]
    for name, section in sections.items():
        assert section.description.endswith((".", ").")), name
        for setting in section.settings:
            assert setting.section == name


@pytest.mark.parametrize(
    ("name", "type_", "bounds"),
    [
        ("seed", "integer", "from 0 to 4294967295"),
        ("routes", "list with any of text, image, or null", "at least one entry"),
        ("cleaning.k_core", "integer", "at least 1"),
        ("cleaning.min_rating", "number or null", ""),
        ("cleaning.session_gap_minutes", "number or null", "above 0"),
        ("split.later_share", "number", "at least 0 and below 1"),
        ("split.test_from", "date and time or null", ""),
        ("text_encoder.batch_size", "integer or auto", "at least 1"),
        ("text_encoder.prefix", "text", ""),
        ("quantizer.hidden_dims", "list of integers", ""),
        ("recommender.encoding", "one of exact, item_causal", ""),
        ("recommender.warm_start", "true or false", ""),
        ("evaluation.confidence", "number", "above 0.5 and below 1"),
        ("identity.limits.max_gini.value", "number", ""),
    ],
)
def test_types_and_bounds_are_in_words(name: str, type_: str, bounds: str) -> None:
    """A reader needs no Python to understand what a setting accepts."""
    assert (BY_NAME[name].type, BY_NAME[name].bounds) == (type_, bounds)


def test_no_bound_is_left_out() -> None:
    """Every numeric bound of a field appears in its description of bounds."""
    num_bounds = 0
    for section_name, section_field in PipelineConfig.model_fields.items():
        if not _is_section(section_field.annotation):
            continue
        for name, field in section_field.annotation.model_fields.items():  # type: ignore[union-attr]
            for bound in field.metadata:
                if isinstance(bound, Ge | Gt | Le | Lt):
                    (value,) = (
                        vars(bound).values() if hasattr(bound, "__dict__") else (getattr(bound, bound.__slots__[0]),)
                    )
                    assert f"{value}" in BY_NAME[f"{section_name}.{name}"].bounds
                    num_bounds += 1
    assert num_bounds > 50


def test_choices_are_the_values_that_can_be_listed() -> None:
    """The choices of a setting are the values that the shell completes after the equals sign."""
    assert BY_NAME["runtime.device"].choices == ("auto", "cpu", "cuda")
    assert BY_NAME["sasrec.enabled"].choices == ("true", "false")
    assert BY_NAME["text_encoder.batch_size"].choices == ("auto",)
    assert BY_NAME["cleaning.min_rating"].choices == ("null",)
    assert BY_NAME["seed"].choices == ()
