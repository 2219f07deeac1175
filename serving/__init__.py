"""Serving: the Triton model repository, the process that runs it, the gRPC client and the check of served answers."""
