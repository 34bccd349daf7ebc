"""Bob with slixmpp: says yes to whoever asks for a subscription and asks back, and answers each message `echo: BODY`.

Prints `ready`, and ends when it is killed.
"""

import argparse
import asyncio
import logging

from chat import Person


class Echo(Person):
    """A person who agrees."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.auto_authorize = True
        self.auto_subscribe = True

    async def answer(self):
        while True:
            message = await self.messages.get()
            if message["type"] == "chat" and message["body"]:
                self.say(message["from"], f"echo: {message['body']}")


async def echo(options):
    bob = Echo("bob", "desk", options.domain, options.address, options.authority)
    await bob.begin()
    bob.send_presence()
    await bob.presence(bob.boundjid, "available")
    print("ready", flush=True)
    await bob.answer()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("domain", "address", "authority"):
        parser.add_argument(f"--{name}", required=True)
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(echo(parser.parse_args()))


if __name__ == "__main__":
    main()
