"""Live migration of running Linux processes over SSH."""

__version__ = "0.1.0"
