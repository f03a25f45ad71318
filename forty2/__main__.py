"""`python -m forty2`."""

from forty2.cli import main

main()
