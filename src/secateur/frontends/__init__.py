"""Front-ends turn a model into a `secateur.graph.Graph`, and write weights back. Nothing else."""
