"""Tests of the builder: `python3 -m unittest discover -s image -t image`."""
