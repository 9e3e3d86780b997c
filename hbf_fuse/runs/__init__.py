"""What is kept of finished cells: one model of a run, and the folder that holds runs."""
