"""What steering does to answers: items, arms, a lab that computes them, and the sums."""
