"""Many videos on many machines, on Ray: ``pip install navicache[ray]``.

:func:`generate` makes a batch and loses nothing; :class:`Generator` is the same for pipelines of Ray Data.
"""

try:
    import ray as _ray  # noqa: F401
except ImportError as error:
    raise ImportError("navicache.ray needs Ray: pip install 'navicache[ray]'") from error

from navicache.ray.batch import Failed, Result, Summary, generate
from navicache.ray.data import Generator
from navicache.ray.jobs import Job, read_jobs

__all__ = ["Failed", "Generator", "Job", "Result", "Summary", "generate", "read_jobs"]
