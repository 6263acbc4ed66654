"""One module a figure, or a few that are measured alike: `measure(context) -> Outcome`. They run in the driver's process."""
