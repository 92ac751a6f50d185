"""The right L4S queue for every packet: predict the next packet's delay in each, mark accordingly."""
