"""Live migration of running Linux processes over SSH."""
