"""Capture: the state of a rank into a slot of shared memory, without training feeling it.

views     what the user's objects hold, told cheaply enough to be asked in every step
plan      where each tensor goes, kept as long as nothing but values changes
lane      the copies that one fence guards; whoever needs them done takes part in them
job       one snapshot under way: its lanes, then the seal
engine    decides, starts jobs, fences optimizers, reports
tuner     chooses the mode from what was measured in this job (pure)
device    the same for CUDA: pinned slots, a side stream, events
slot      choosing, opening and publishing a slot of the arena
"""
