"""Checkpoints on disk: `migrate dump`, `migrate restore` and `migrate show`.

The engine is that of a migration, with a directory for a destination. What is written is the state of the process as
data (its image) and its pages, not programs: these are compiled when it is restored, for the host as it is then. The
format is described in docs/image.md.
"""
