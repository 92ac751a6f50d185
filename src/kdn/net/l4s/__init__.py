"""The right L4S queue for every packet: forecast its delay in each, mark accordingly."""
