"""The data contract, the adapters that bring real logs into it, the ingest that writes the lake, and the simulator."""
