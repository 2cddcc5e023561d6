"""The settings of the service."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from macrec_pipeline.errors import ConfigError, did_you_mean


class ServiceSettings(BaseModel):
    """How requests are batched, and which requests are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_window_ms: float = Field(
        2, ge=0, le=1000, description="How long, in milliseconds, a request waits for others to be answered with it."
    )
    max_batch: int = Field(64, ge=1, le=4096, description="Most requests that are answered together.")
    max_queue: int = Field(
        256, ge=1, description="Most requests that wait. A further one gets status 503 with `Retry-After`."
    )
    max_body_bytes: int = Field(4_000_000, ge=1, description="Largest body of a request, in bytes; status 413.")
    max_rows: int = Field(1000, ge=1, description="Most rows of a request to `/invocations`; status 413.")
    max_k: int = Field(1000, ge=1, description="Most items per user; status 422.")
    max_history: int = Field(10_000, ge=1, description="Most items of a history; status 422.")
    max_rule_items: int = Field(100_000, ge=1, description="Most entries of one business rule; status 422.")
    poll_seconds: float = Field(5, gt=0, description="How often the service looks for a new champion, in seconds.")
    load_seconds: float = Field(300, gt=0, description="How long a version may take to load, in seconds.")
    threads: int = Field(2, ge=1, description="Threads of the model.")


def parse_settings(assignments: Sequence[str]) -> ServiceSettings:
    """Build settings from assignments such as `max_k=100`.

    Raises:
        ConfigError: an assignment has no `=`, or names an unknown setting, or its value is invalid.
    """
    values = {}
    for assignment in assignments:
        name, found, value = assignment.partition("=")
        if not found:
            raise ConfigError(f"{assignment!r} is not an assignment such as max_k=100.")
        if name not in ServiceSettings.model_fields:
            raise ConfigError(f"The service has no setting {name!r}.{did_you_mean(name, ServiceSettings.model_fields)}")
        values[name] = value
    try:
        return ServiceSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{first['loc'][0]}={first['input']}: {first['msg']}.") from None
