"""Holdfast and its peers, measured side by side (`make bench`; docs/bench.md)."""
