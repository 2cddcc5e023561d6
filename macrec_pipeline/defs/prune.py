"""The op of the job `prune`, which removes what a data set no longer needs."""

from typing import Any

import dagster as dg

from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.defs.retention import prune


@dg.op(out=dg.Out(dagster_type=dg.Nothing), description="Removes what the data set's `retention` no longer keeps.")
def remove_what_is_no_longer_needed(context: dg.OpExecutionContext, settings: Settings) -> Any:
    """Remove what the limits of the data set no longer allow to be kept, and report it."""
    dataset = context.partition_key
    report = prune(context.instance, settings, dataset)
    for removal in report.removals:
        context.log.info(f"Removed: {removal.kind} {removal.name}, {removal.num_bytes:,} bytes; {removal.reason}.")
    for note in report.notes:
        context.log.warning(note)
    context.add_output_metadata({"removed": len(report.removals), "freed_bytes": report.freed_bytes})
