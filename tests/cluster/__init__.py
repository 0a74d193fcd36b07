"""Runs on a real Slurm cluster: whatever happens to the job, it ends with the weights of a run without faults.

`pytest -m "campaign or not campaign"` runs all tests; those not marked `campaign` are the short form.
"""
