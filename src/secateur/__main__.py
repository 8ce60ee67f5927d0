"""`python -m secateur`."""

from secateur_main import main

main()
