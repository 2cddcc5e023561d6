"""Messages about rejected settings: the full name, what was given, and what is allowed."""

import copy
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from macrec_pipeline.config import PipelineConfig
from macrec_pipeline.config.reference import all_settings
from macrec_pipeline.config.validation_messages import describe_validation_error
from macrec_pipeline.datasets import DatasetSpec
from macrec_pipeline.presets import parse_overrides

SPEC: dict[str, Any] = {
    "name": "shop",
    "title": "A shop",
    "source": {
        "reader": "tables",
        "interactions": {"file": "log.csv", "user_id": "u", "item_id": "i", "timestamp": "t"},
        "items": {"file": "items.csv", "item_id": "i", "title": "name"},
    },
}


def _message(model: type[BaseModel], values: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(values)
    return describe_validation_error(caught.value, model)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "recommender.num_epoch=3",
            "Unknown setting `recommender.num_epoch`. Did you mean `recommender.num_epochs`?",
        ),
        ("recomender.num_epochs=3", "Unknown section `recomender`. Did you mean `recommender`?"),
        ("recommender.k_core=3", "Unknown setting `recommender.k_core`. Did you mean `cleaning.k_core`?"),
        (
            "num_epochs=3",
            "Unknown setting `num_epochs`. Did you mean `quantizer.num_epochs` or `recommender.num_epochs`?",
        ),
        (
            "identity.limits.max_ginni.value=1",
            "Unknown section `identity.limits.max_ginni`. Did you mean `identity.limits.max_gini`?",
        ),
        (
            "recommender.zzz=1",
            "Unknown setting `recommender.zzz`. Run `macrec settings recommender` to list the settings that exist.",
        ),
        ("zzz=1", "Unknown setting `zzz`. Run `macrec settings` to list the settings that exist."),
        ("recommender.num_epochs=many", "`recommender.num_epochs` must be an integer of at least 1; got 'many'."),
        ("seed=-1", "`seed` must be an integer from 0 to 4294967295; got -1."),
        ("split.test_share=2", "`split.test_share` must be a number above 0 and below 1; got 2."),
        ("decoding.top_k=null", "`decoding.top_k` must be an integer from 1 to 1000; got null."),
        ("promotion.automatic=perhaps", "`promotion.automatic` must be true or false; got 'perhaps'."),
        ("recommender.encoding=x", "`recommender.encoding` must be one of exact, item_causal; got 'x'."),
        ("text_encoder.batch_size=0", "`text_encoder.batch_size` must be an integer of at least 1, or auto; got 0."),
        ("routes=[text, audio]", "`routes[1]` must be one of text, image; got 'audio'."),
        (
            "routes=text",
            "`routes` must be a list with any of text, image (at least one entry), or null; got 'text'.",
        ),
        ("split.test_from=soon", "`split.test_from` must be a date and time or null; got 'soon'."),
        (
            "recommender=3",
            "`recommender` is a section, so it takes settings such as `recommender.d_model`; got 3.",
        ),
        ("identity.limits.max_gini.action=block", "`identity.limits.max_gini.value` is missing; it must be a number."),
    ],
)
def test_a_rejected_setting_is_explained(assignment: str, message: str) -> None:
    """Each kind of error has a sentence of its own, with the full name of the setting."""
    assert _message(PipelineConfig, parse_overrides([assignment])) == message


def test_a_rule_about_a_section_names_the_section() -> None:
    """A rule that concerns several settings has no single name, and the message does not print the whole tree."""
    assert _message(PipelineConfig, {"runtime": {"workers": 2}}) == (
        "In section `runtime`: workers=2 needs a driver with workers; set runtime.driver to processes or ray."
    )
    message = _message(PipelineConfig, {"quantizer": {"collaborative_input_weight": 1}, "sasrec": {"enabled": False}})
    assert message.startswith("quantizer.collaborative_input_weight needs sasrec.enabled=true")


def test_a_value_of_the_wrong_form_is_answered_with_the_description() -> None:
    """A pattern says nothing to most readers, so the message repeats what the setting is for."""
    message = _message(PipelineConfig, {"recommendations": {"model": "@x"}})
    assert message.startswith("`recommendations.model` does not accept '@x'. Model to use: an alias or a version")


def test_several_errors_are_several_sentences() -> None:
    """No error hides another one."""
    message = _message(PipelineConfig, {"seed": "x", "recommender": {"d_model": 1, "num_epoch": 3}})
    assert message == (
        "`seed` must be an integer from 0 to 4294967295; got 'x'. `recommender.d_model` must be an integer of at least "
        "8; got 1. Unknown setting `recommender.num_epoch`. Did you mean `recommender.num_epochs`?"
    )


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("k_cor", 5, "Unknown setting `k_cor`. Did you mean `k_core`?"),
        ("recommender", {"num_epochs": 3}, "Unknown section `recommender`. Did you mean `overrides.recommender`?"),
        ("source.items.titel", "name", "Unknown setting `source.items.titel`. Did you mean `source.items.title`?"),
        (
            "source.items.texts",
            [3.5],
            "`source.items.texts[0]` must be text, or an integer, or a mapping with label, flags; got 3.5.",
        ),
        ("source", {"folder": "x"}, "In section `source`: `reader` is missing; it must be "),
        ("source", {"reader": "tabels"}, "there is no reader 'tabels'. Did you mean `tables`?"),
        ("source", None, "`source` must be a mapping with `reader`; got null."),
        ("encoders", {"txt": "x"}, "Unknown setting `encoders.txt`. Did you mean `encoders.text`?"),
    ],
)
def test_a_data_set_file_is_explained_in_the_same_way(path: str, value: Any, message: str) -> None:
    """Names leave out the labels that pydantic adds for the alternatives of a field."""
    values = copy.deepcopy(SPEC)
    section, keys = values, path.split(".")
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = value
    assert message in _message(DatasetSpec, values)


def test_an_error_inside_an_alternative_replaces_those_about_the_others() -> None:
    """A typo in a mapping is reported alone, not with the types that the mapping is not."""
    values = copy.deepcopy(SPEC)
    values["source"]["items"]["texts"] = [{"label": "Uses", "flag": ["indoor"]}]
    message = _message(DatasetSpec, values)
    assert "Unknown setting `source.items.texts[0].flag`. Did you mean `source.items.texts[0].flags`?" in message
    assert "must be text" not in message


def test_a_long_value_is_cut_off() -> None:
    """A message stays readable whatever was given."""
    assert len(_message(PipelineConfig, {"seed": "x" * 10_000})) < 250


def test_no_setting_answers_with_the_words_of_pydantic() -> None:
    """A value of a wrong type is explained for every setting, with the name that `--set` takes."""
    for setting in all_settings():
        nested: Any = [{"wrong": "type"}]
        for key in reversed(setting.name.split(".")):
            nested = {key: nested}
        message = _message(PipelineConfig, nested)
        assert f"`{setting.name}" in message
        assert "Input should" not in message
        assert message.endswith(".")
