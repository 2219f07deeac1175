"""Features: the four user pathways, the Feast definitions over them, point-in-time training sets and online reads."""
