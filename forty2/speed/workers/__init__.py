"""The programs that `forty2 speed` measures: one file each, run by path in a process of its own.

A worker is a function `prepare(job)`. It does what is not to be measured, mostly loading, and
returns a function that does what is. The environment of another trainer lacks forty2, so its worker
and `__main__.py` import nothing of the package.
"""
