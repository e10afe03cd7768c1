"""What `cryoray doctor` looks at: this machine, a Ray cluster, Prefect."""
