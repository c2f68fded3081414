"""Where an assignment runs: in this process, on Spark, or under a virtual clock."""
