"""Builds the disk image of a box: from locked packages and the sources of this repository to bytes that are always the same."""
