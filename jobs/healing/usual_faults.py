"""The faults that a rehearsal tries where none are named. `--help` says them, so this file imports
nothing.
"""

USUAL = "kill,preempt,time_limit,out_of_memory_gpu,nan_gradient,nan_data,rate,disk_full"
