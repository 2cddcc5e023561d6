"""The bundle: a folder with everything that a service needs to recommend, and the code that serves and evaluates it."""
