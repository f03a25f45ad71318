"""What `forty2 bench` measures: one file each, run by path in an environment of its own.

A worker is a function `prepare(job)`, which does what is not to be measured (loading, mostly) and
returns what is. A peer's environment holds no forty2, so the peers' workers and `__main__.py` get
by without it.
"""
