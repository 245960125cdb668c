"""How long a pretraining will take on a machine, and what will bound it, before it is rented."""
