"""Where blocks lie: memory, disk, remote."""
