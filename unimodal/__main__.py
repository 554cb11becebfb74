"""`python -m unimodal` is the console command `unimodal`."""

from unimodal.command import program

if __name__ == "__main__":
    program()
