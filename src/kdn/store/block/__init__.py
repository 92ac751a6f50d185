"""One stored block: its name, its bytes on disk and on the wire, its reader."""
