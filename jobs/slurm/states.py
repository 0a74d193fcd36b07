"""The states of jobs and nodes, as Slurm's commands print them."""

# States of a job that Slurm has not ended.
RUNNING_STATES = ("RUNNING", "SIGNALING", "STOPPED", "RESIZING")
# States in which a start of a job may have processes, although it does not run.
UNDECIDED_STATES = ("COMPLETING", "SUSPENDED", "CONFIGURING", "STAGE_OUT")
HELD = "JobHeldUser"  # the reason for which a job is pending that its user holds
DEFERRED = "BeginTime"  # the reason for which a job is pending that may not start before some time
TIME_LIMIT = "TimeLimit"  # the reason of a job that Slurm has ended at its time limit
# States of nodes on which no job starts.
UNUSABLE = {"down", "drained", "draining", "drain", "fail", "failing", "maint", "unknown", "no_respond", "power_down"}
NODE_FLAGS = "*~#!%$@^-"  # signs that sinfo appends to the state of a node
