"""The durable levels. `base` is what a store can do, `filesystem` and `objects` do it, `steps` keeps checkpoints in one."""
