"""The launcher: starts, watches and stops the processes that run the user's script, as its pod's sidecar says.

`supervisor` holds the state and obeys; `sidecar` is the connection; `contract` the processes' environment; `spawn` a cold
start; `command`, `warm` and `standby` a warm one (fork from an interpreter that has torch imported); `output` their logs;
`linux` the few system calls that Python lacks. One thread, so that forking is safe.
"""
