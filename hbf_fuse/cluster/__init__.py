"""Work on more cores or machines: grids of simulations, and sweeps whose cells are measured elsewhere."""
