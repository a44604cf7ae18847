"""The whole program, as its users run it: real processes, real stores, real sockets."""
