"""The bundle: everything that a service needs to recommend, as one folder that verifies itself."""
