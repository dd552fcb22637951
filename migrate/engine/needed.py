"""Which files a process needs by now: what its preview told may be another matter when it stands still."""

from __future__ import annotations

from migrate.engine.kinds import mapped
from migrate.engine.kinds.needs import FileNeed
from migrate.engine.preview import Preview
from migrate.engine.process import ProcessImage


def needs_of(preview: Preview, image: ProcessImage) -> tuple[FileNeed, ...]:
    """The files that it needs, as of its image. The executable's is of the preview."""
    pid = preview.pid
    own = [need for need in preview.needs if need.path == image.mm.exe and need.content]
    files = [*image.descriptors.needs(pid), *mapped.files(image.vmas, f"pid {pid}"), *image.fs.needs(f"pid {pid}")]
    return tuple(dict.fromkeys([*files, *own]))
