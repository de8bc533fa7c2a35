"""Containers: from an image's config and options to a running process and its record."""
