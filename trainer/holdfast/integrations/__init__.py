"""Holdfast in other people's training loops. Each module imports its library when it is imported itself, and only then:

`transformers` (the Trainer of Hugging Face), `accelerate`, `lightning`, `dcp` (torch.distributed.checkpoint).

They use `holdfast.Checkpointer` as a script does. What they add is the part of the state that the loop owns: its counters, and
the place in the data (`_epoch`). Snapshots are taken when the next step begins, not when a step ends: what lies between
(evaluation, schedules that follow a metric, the end of an epoch, fetching the next batch) then belongs to the step, and is
neither lost nor done twice.
"""
