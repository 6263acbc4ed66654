"""Starts `holdfast_bench.worker`: launchers want a file, and the folder of this one holds nothing that could shadow a module."""

from holdfast_bench.worker import main

main()
