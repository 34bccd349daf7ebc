"""The database of Dino, from outside.

`dino.py DATABASE account JID PASSWORD` adds an account; `dino.py DATABASE messages` prints one line a message, `in` or
`out` and the body, in the order of time. `dino.py DATABASE ready` fails while there is no such table.
"""

import sqlite3
import sys


def main(path, act, *arguments):
    database = sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=10)
    if act == "ready":
        database.execute("SELECT mam_earliest_synced FROM account")
    elif act == "account":
        jid, password = arguments
        database.execute(
            "INSERT INTO account (bare_jid, resourcepart, password, enabled, roster_version, mam_earliest_synced) "
            "VALUES (?, 'dino', ?, 1, '', 0)",
            (jid, password),
        )
        database.commit()
    else:
        # 1 is what the account sent, from whichever device.
        for direction, body in database.execute("SELECT direction, body FROM message ORDER BY time, id"):
            print("out" if direction else "in", body)


if __name__ == "__main__":
    main(*sys.argv[1:])
