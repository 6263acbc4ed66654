"""What a snapshot holds, and how it becomes bytes: codec, RNG, sources of state, capture into a slot, load out of it."""
