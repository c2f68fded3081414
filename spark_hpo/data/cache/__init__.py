"""The node cache: decoded row groups on the local disk of each machine, shared by ranks and trials."""
