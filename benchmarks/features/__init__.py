"""Benchmarks of the feature room: pathways, point-in-time joins, online reads."""
