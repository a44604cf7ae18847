"""The command line (being written)."""

import sys


def main(argv: list[str] | None = None) -> int:
    """Run one command."""
    from config.settings import load_settings

    command = (sys.argv[1:] if argv is None else argv)[0]
    if command == "serve":
        from api.serve import run

        return run(load_settings())
    from api.audit import run as audit

    return audit(load_settings())


if __name__ == "__main__":
    sys.exit(main())
