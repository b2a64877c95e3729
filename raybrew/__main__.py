"""`python -m raybrew` is the console script."""

from raybrew.cli import main

main()
