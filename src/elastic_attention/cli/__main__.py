"""`python -m elastic_attention.cli`: the form in which torchrun starts the commands."""

from . import main

if __name__ == "__main__":
    main()
