"""`jaxlm launch`: from a short description of machines to what rents them, starts a run there, and keeps it going.

target.py reads the description, accelerators.py knows the machines (platforms.yaml), job.py checks the command before
anything is rented. One module for each platform turns both into a `Launch` (launches.py): commands and files, which are
printed, or executed. supervisor.py starts processes again that a preemption or a crash ended; it runs on every machine.

Nothing here imports JAX: it starts what does.
"""
