"""The errors that the package raises on purpose.

A message says what was wrong, what was got, what was expected and what to do next; it names the file, the table, the
column and the row where there is one. The command line prints the message alone and exits with status 2; everything
that is not a `MacrecError` is a fault of this package and keeps its traceback.

    MacrecError
    ├── ConfigError            a setting, an override or a command-line argument
    │   └── UnknownDatasetError    a data set name without a YAML file
    ├── DataError              what a file or a table holds
    │   ├── MissingFileError       a file or folder that must be there
    │   └── SchemaError            columns, dtypes or invariants of a table
    ├── EncoderError           a text or image encoder that cannot be loaded or does not fit
    ├── SemanticIdError        semantic IDs that cannot be made, or made unique
    ├── TrainingError          a loss or gradient that is not finite, a checkpoint that does not belong
    ├── RequestError           what a consumer asked of the recommender
    ├── WorkerError            a process that died over its part of the work, again and again
    ├── StorageError           an asset that is missing, incomplete or damaged on disk
    └── TrackingError          the MLflow store or the model registry
        ├── ChampionMovedError     another version is champion than the one that was reckoned with
        └── StoreAwayError         an MLflow store that does not answer or has no room: later it may
"""


class MacrecError(Exception):
    """Base class of every error that the package raises on purpose."""


class ConfigError(MacrecError):
    """A setting, an override or a command-line argument is wrong."""


class UnknownDatasetError(ConfigError):
    """There is no YAML file for the data set asked for."""


class DataError(MacrecError):
    """A file or a table holds something that cannot be used."""


class MissingFileError(DataError):
    """A file or folder that must be there is not."""


class SchemaError(DataError):
    """A table breaks its declared columns, dtypes or invariants."""


class EncoderError(MacrecError):
    """An encoder cannot be loaded, or its output does not fit the catalogue."""


class SemanticIdError(MacrecError):
    """Semantic IDs cannot be made, or cannot be made unique."""


class TrainingError(MacrecError):
    """Training met a value that is not finite, or a checkpoint that does not belong to it."""


class RequestError(MacrecError):
    """A consumer asked the recommender for something it cannot answer."""


class WorkerError(MacrecError):
    """Worker processes died over a part of the work, as often as it is tried."""


class StorageError(MacrecError):
    """An asset is missing, incomplete or damaged on disk."""


class TrackingError(MacrecError):
    """The MLflow store or the model registry refused, or lacks what was asked for."""


class ChampionMovedError(TrackingError):
    """Another version is champion than the one that a promotion reckoned with."""


class StoreAwayError(TrackingError):
    """The MLflow store does not answer, or has no room; the same may work later."""
