"""One description of a run → the commands or the manifest of a platform, through that platform's own tool.

`launch.py pod --platform=tpu-vm|gke|slurm|sky|local`; each platform is one module with `steps` (what would run).
"""
