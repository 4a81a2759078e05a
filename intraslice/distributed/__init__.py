"""Distributes a job over several processes: process group, sharding and reductions."""
