"""The base class of all groups of settings, and the types that several groups share."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Route = Literal["text", "image"]
ROUTES: tuple[Route, Route] = ("text", "image")


Task = Literal[
    "text_to_text",
    "image_to_image",
    "text_to_image",
    "image_to_text",
    "text_id_to_image_id",
    "image_id_to_text_id",
]


# The dtype of matrix products. With bfloat16, which some processors compute faster, weights and sums stay float32.
Precision = Literal["float32", "bfloat16"]


class Section(BaseModel):
    """A frozen group of settings that rejects unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid")
