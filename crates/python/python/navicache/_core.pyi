"""The part that is written in Rust."""

__version__: str
