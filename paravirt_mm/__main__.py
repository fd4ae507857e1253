"""``python -m paravirt_mm`` is ``paravirt-mm``."""

from paravirt_mm.cli.main import main

if __name__ == "__main__":
    main()
