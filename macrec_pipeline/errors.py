"""The exceptions that this package raises on purpose.

Every message says what is wrong, what was found, what was expected and what to do next, and names the file, table,
column or row where there is one. The `macrec` command prints the message of a `MacrecError` without a traceback and
exits with status 2. Any other exception is a bug in this package and keeps its traceback.

    MacrecError
    ├── ConfigError              a setting, an override or a command-line argument is wrong
    │   └── UnknownDatasetError      no YAML file describes the data set
    ├── DataError                a file or table has content that cannot be used
    │   ├── MissingFileError         a required file or folder does not exist
    │   └── SchemaError              a table has wrong columns, dtypes or values
    ├── EncoderError             a text or image encoder cannot be loaded or does not fit the catalogue
    ├── SemanticIdError          semantic IDs cannot be assigned, or cannot be made unique
    ├── TrainingError            a loss or gradient is not finite, or a checkpoint belongs to another training
    ├── RequestError             a request to the recommender is invalid
    │   └── UnknownItemError         the catalogue has no item of this id
    ├── WorkerError              worker processes died repeatedly on the same part of the work
    ├── StorageError             an asset is missing, incomplete or damaged on disk
    └── TrackingError            the MLflow store or the model registry rejected an operation
        ├── ChampionMovedError       another version became champion in the meantime
        └── StoreUnavailableError    the MLflow store does not respond or is out of space, possibly for a short time
"""

from collections.abc import Iterable
from difflib import get_close_matches


class MacrecError(Exception):
    """Base class of the exceptions that this package raises on purpose."""


class ConfigError(MacrecError):
    """A setting, an override or a command-line argument is wrong."""


class UnknownDatasetError(ConfigError):
    """No YAML file describes the data set."""


class DataError(MacrecError):
    """A file or table has content that cannot be used."""


class MissingFileError(DataError):
    """A required file or folder does not exist."""


class SchemaError(DataError):
    """A table violates its declared columns, dtypes or invariants."""


class EncoderError(MacrecError):
    """An encoder cannot be loaded, or its output does not fit the catalogue."""


class SemanticIdError(MacrecError):
    """Semantic IDs cannot be assigned, or cannot be made unique."""


class TrainingError(MacrecError):
    """A loss or gradient is not finite, or a checkpoint belongs to another training."""


class RequestError(MacrecError):
    """A request to the recommender is invalid."""


class UnknownItemError(RequestError):
    """The catalogue of the model has no item of this id."""


class WorkerError(MacrecError):
    """Worker processes died on the same part of the work until the retries were used up."""


class StorageError(MacrecError):
    """An asset is missing, incomplete or damaged on disk."""


class TrackingError(MacrecError):
    """The MLflow store or the model registry rejected an operation, or lacks what it needs."""


class ChampionMovedError(TrackingError):
    """Another version became champion after the promotion was decided."""


class StoreUnavailableError(TrackingError):
    """The MLflow store does not respond or is out of space; the same call may succeed later."""


def similar_names(name: str, candidates: Iterable[str]) -> list[str]:
    """Return at most two names that are similar to an unknown one, the most similar first."""
    return get_close_matches(name, list(candidates), n=2, cutoff=0.7)


def did_you_mean(name: str, candidates: Iterable[str], *, also: Iterable[str] = ()) -> str:
    """Return the end of an error message that suggests names in place of an unknown one.

    Args:
        name: the unknown name.
        candidates: the names that exist; the two most similar ones are suggested.
        also: further names to suggest, however they are spelled.

    Returns:
        " Did you mean `a` or `b`?", with a leading space; "" if there is nothing to suggest.
    """
    suggestions = [*similar_names(name, candidates), *also]
    quoted = [f"`{suggestion}`" for suggestion in dict.fromkeys(suggestions)]
    return f" Did you mean {' or '.join(quoted)}?" if quoted else ""
