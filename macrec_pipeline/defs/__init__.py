"""The Dagster side: assets, checks, jobs, sensors, resources. The only folder that imports dagster."""
