"""What every group of settings is made of."""

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


# bfloat16 is faster where the processor has it, as products of many small numbers; weights and sums stay float32.
Precision = Literal["float32", "bfloat16"]


class Section(BaseModel):
    """A frozen group of settings that refuses unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid")
