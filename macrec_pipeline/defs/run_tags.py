"""The tags that this package puts on Dagster runs. Dagster's own tags are in `dagster_private`."""

LAUNCHED_BY = "macrec/launched_by"
"""Who launched the run. Its only value is `COMMAND_LINE`; runs of the UI, a schedule or a sensor lack the tag."""
COMMAND_LINE = "command line"

SETTINGS_TAG = "macrec/settings"
"""Overrides that come with the run's job, as `section.field=value`, separated by spaces.

They apply on top of the data set's settings and below the overrides in the run config. A tag of a job reaches every run
of it, even when a person has replaced the run config.
"""

CONFIG_DIGEST = "macrec/config_digest"
"""The digest of the run's resolved settings."""

RAW_DATA_TAG = "macrec/raw_data"
"""The digest of the new raw files that made a sensor launch the run."""

WAITED_FOR = "macrec/waited_for"
"""The IDs of the runs of the same data set that this run waited for before it started, separated by spaces."""

ERROR_TAG = "macrec/error"
"""Why the run failed."""

RESUME_TAG = "macrec/resume"
"""How to continue after the failure."""
