"""Starts `holdfast_bench.tasks.restored`: a script, as a user's would be, that imports Holdfast first."""

from holdfast_bench.tasks.restored import main

main()
