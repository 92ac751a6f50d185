"""How much a server answers under load, beside vLLM's, with one generator of load for both."""
