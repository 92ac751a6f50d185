"""The page at the server's root: what is stored, what became of requests, and what an operator may do."""
