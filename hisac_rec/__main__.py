"""``python -m hisac_rec`` is the ``hisac-rec`` command."""

from hisac_rec.cli.app import main

if __name__ == "__main__":
    main()
