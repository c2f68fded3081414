"""A sampler, a scheduler and a reader that spark_hpo finds by their entry points."""
