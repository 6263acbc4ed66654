"""`holdfast.resilient`: a function that starts again in the same process when another rank has died.

`loop` is the public function; `control` the process's end of the line to its launcher, with the thread that interrupts;
`groups` what is done to torch.distributed; `live` the Checkpointers that must be shut before an attempt can be left.
"""
