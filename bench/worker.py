"""Starts `holdfast_bench.worker`. Launchers want a file; the folder of this one holds nothing that could shadow a module."""

from holdfast_bench.worker import main

main()
