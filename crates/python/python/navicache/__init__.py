"""Video diffusion that computes only the steps that matter."""

from navicache._core import __version__

__all__ = ["__version__"]
