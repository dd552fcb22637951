"""Moves between different kernels: this machine's and those of four Debian releases in emulated guests."""
