"""The cluster tests on several versions of Slurm, each from the packages of a Debian or Ubuntu release in a chroot."""
