"""``python -m trio_ws_server``: the command line."""

from trio_ws_server.cli import main

if __name__ == "__main__":
    main()
