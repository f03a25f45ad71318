"""`python -m forty2` is the command `forty2`."""

from forty2.cli import main

main()
