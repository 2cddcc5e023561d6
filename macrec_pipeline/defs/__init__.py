"""The Dagster side: assets, checks, jobs, sensors and resources. Nothing below this package imports dagster."""
