"""Releases: an immutable, verified set of files a day, and the small pointers (channels) that name the one in use."""
