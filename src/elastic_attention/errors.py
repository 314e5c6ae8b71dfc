"""Every exception of the package. All are exported at the top level."""


class ElasticAttentionError(Exception):
    """Base class of the package's own errors."""


class UnsupportedModel(ElasticAttentionError, TypeError):
    """The model cannot be attached; the message names what is missing."""


class AlreadyAttached(ElasticAttentionError, RuntimeError):
    """`attach` was called on a model that carries routers already."""


class UnsupportedCache(ElasticAttentionError, TypeError):
    """A cache was passed that cannot hold routed heads (static, quantised, or filled by the base model)."""


class CacheDepthError(ElasticAttentionError, RuntimeError):
    """A crop went deeper than the tokens that sparse heads still hold."""


class BackendUnavailable(ElasticAttentionError, RuntimeError):
    """An explicitly chosen backend cannot run here; the message names the requirement that failed."""


class AdapterError(ElasticAttentionError, ValueError):
    """An adapter folder is missing, damaged, or of an unknown format."""


class RouterMismatch(AdapterError):
    """The adapter's routers do not fit the model."""


class RecipeError(ElasticAttentionError, ValueError):
    """A training recipe is malformed; the message names the key and the remedy."""


class CheckpointError(ElasticAttentionError, RuntimeError):
    """A training checkpoint is damaged or belongs to another run."""


class TrainingDiverged(ElasticAttentionError, ArithmeticError):
    """The loss of a training step is no number; the message names the step and the samples."""


class DataError(ElasticAttentionError, ValueError):
    """A training record or data file is malformed; the message names file, line, key and remedy."""


class DownloadError(ElasticAttentionError, RuntimeError):
    """A model or corpus could not be fetched, or its checksum is wrong."""


class LostRank(ElasticAttentionError, RuntimeError):
    """A process of a run on several GPUs died or hangs; the message names it where it is known."""
