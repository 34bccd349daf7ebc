"""Two strangers with slixmpp: the handshake of a subscription, a second device with carbons, a third that reads the
history page by page, and a block and its end.

Prints `sent: BODY` for every message, and `all well` at the end. Any difference is an exception.
"""

import argparse
import asyncio
import logging

from slixmpp.exceptions import IqError

from chat import WAIT, Person, expect

PAGE = 2


class Stranger(Person):
    """A person who answers requests of others by hand."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.register_plugin("xep_0191")
        self.register_plugin("xep_0313")
        self.auto_authorize = None
        self.auto_subscribe = False
        self.changes = asyncio.Queue()
        self.add_event_handler("roster_update", self.changes.put_nowait)
        self.errors = asyncio.Queue()
        self.add_event_handler("message_error", self.errors.put_nowait)

    async def subscription(self, other, state):
        """Waits until the roster says so."""
        while self.client_roster[other]["subscription"] != state:
            await asyncio.wait_for(self.changes.get(), WAIT)

    async def ping(self):
        await asyncio.wait_for(self.plugin["xep_0199"].ping(self.boundjid.host), WAIT)

    async def history(self, **query):
        found = []
        async for message in self.plugin["xep_0313"].iterate(rsm={"max": PAGE}, **query):
            result = message["mam_result"]
            assert result["id"], message
            found.append(result["forwarded"]["stanza"]["body"])
        return found


async def handshake(carol, dave):
    for one, other in ((carol, dave), (dave, carol)):
        one.send_presence_subscription(pto=other.boundjid.bare, ptype="subscribe")
        await other.presence(one.boundjid.bare, "subscribe")
        other.send_presence_subscription(pto=one.boundjid.bare, ptype="subscribed")
        await one.presence(other.boundjid.bare, "subscribed")
        # Who is subscribed hears of who is there.
        await one.presence(other.boundjid, "available")
    for one, other in ((carol, dave), (dave, carol)):
        await one.subscription(other.boundjid.bare, "both")


async def devices(carol, tablet, dave):
    """A chat that each device of Carol sees whole."""
    for device in (carol, tablet):
        await asyncio.wait_for(device.plugin["xep_0280"].enable(), WAIT)
    dave.say(carol.boundjid, "are you there?")
    await expect(carol, dave.boundjid, "are you there?")
    carbon = await asyncio.wait_for(tablet.carbons.get(), WAIT)
    assert carbon["carbon_received"]["body"] == "are you there?", carbon
    carol.say(dave.boundjid, "yes, here")
    await expect(dave, carol.boundjid, "yes, here")
    carbon = await asyncio.wait_for(tablet.carbons.get(), WAIT)
    assert carbon["carbon_sent"]["body"] == "yes, here", carbon
    tablet.say(dave.boundjid, "and here")
    await expect(dave, tablet.boundjid, "and here")
    carbon = await asyncio.wait_for(carol.carbons.get(), WAIT)
    assert carbon["carbon_sent"]["body"] == "and here", carbon
    for n in range(4):
        dave.say(carol.boundjid, f"number {n}")
        await expect(carol, dave.boundjid, f"number {n}")
        await asyncio.wait_for(tablet.carbons.get(), WAIT)


async def block(carol, dave):
    me, other = carol.boundjid.bare, dave.boundjid.bare
    await asyncio.wait_for(carol.plugin["xep_0191"].block(other), WAIT)
    await dave.presence(carol.boundjid, "unavailable")
    assert await carol.plugin["xep_0191"].get_blocked_jids() == {other}
    dave.say(me, "do you hear me?")
    error = await asyncio.wait_for(dave.errors.get(), WAIT)
    assert error["error"]["condition"] == "service-unavailable", error
    # Nor can Carol write to whom she blocks.
    carol.say(other, "not to you")
    error = await asyncio.wait_for(carol.errors.get(), WAIT)
    assert error["error"]["condition"] == "not-acceptable", error
    await carol.ping()
    await dave.ping()
    assert carol.messages.empty() and dave.messages.empty()
    await asyncio.wait_for(carol.plugin["xep_0191"].unblock(other), WAIT)
    await dave.presence(carol.boundjid, "available")
    assert await carol.plugin["xep_0191"].get_blocked_jids() == set()
    dave.say(carol.boundjid, "and now?")
    await expect(carol, dave.boundjid, "and now?")


async def contacts(options):
    domain = options.domain
    first = (domain, options.first, options.first_authority)
    second = (domain, options.second, options.second_authority)
    carol = Stranger("carol", "phone", *first)
    dave = Stranger("dave", "desk", *second)
    for person in (carol, dave):
        await person.begin()
        assert not set(person.client_roster.keys()) - {person.boundjid.bare}, person.client_roster
        person.send_presence()
        await person.ping()
    await handshake(carol, dave)

    tablet = Stranger("carol", "tablet", *second)
    await tablet.begin()
    assert tablet.client_roster[dave.boundjid.bare]["subscription"] == "both"
    tablet.send_presence()
    await dave.presence(tablet.boundjid, "available")
    await devices(carol, tablet, dave)

    # A third device was not there.
    laptop = Stranger("carol", "laptop", *first)
    await laptop.begin()
    said = ["are you there?", "yes, here", "and here"] + [f"number {n}" for n in range(4)]
    assert await laptop.history() == said
    assert await laptop.history(with_jid=dave.boundjid.bare) == said
    assert await laptop.history(with_jid=f"nobody@{domain}") == []
    assert await laptop.history(reverse=True) == said[::-1]
    assert await laptop.history(reverse=True, total=3) == said[:-4:-1]
    try:
        await laptop.plugin["xep_0313"].retrieve(jid=dave.boundjid.bare)
        raise AssertionError("read somebody else's history")
    except IqError as error:
        assert error.condition == "forbidden", error
    await laptop.disconnect()
    await tablet.disconnect()
    await dave.presence(tablet.boundjid, "unavailable")

    await block(carol, dave)
    dave.send_presence_subscription(pto=carol.boundjid.bare, ptype="unsubscribe")
    await dave.subscription(carol.boundjid.bare, "from")
    await carol.subscription(dave.boundjid.bare, "to")
    await carol.disconnect()
    await dave.disconnect()
    print("all well", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("domain", "first", "first-authority", "second", "second-authority"):
        parser.add_argument(f"--{name}", required=True)
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(contacts(parser.parse_args()))


if __name__ == "__main__":
    main()
