"""Two people with slixmpp: login over verified TLS, roster, presence, messages, carbons, XEP-0198 with resumption.

Prints `sent: BODY` for every message, and `all well` at the end. Any difference is an exception.
"""

import argparse
import asyncio
import logging
import os
import ssl

import slixmpp

WAIT = 30


class Person(slixmpp.ClientXMPP):
    """A client that keeps what comes in queues."""

    def __init__(self, name, resource, domain, address, authority):
        super().__init__(f"{name}@{domain}/{resource}", os.environ["CHANCERY_PASSWORD"])
        host, port = address.rsplit(":", 1)
        self.address = (host, int(port))
        self.ca_certs = authority
        self.enable_direct_tls = False
        self.enable_starttls = True
        self.enable_plaintext = False
        for plugin in ("xep_0030", "xep_0092", "xep_0198", "xep_0199", "xep_0202", "xep_0280"):
            self.register_plugin(plugin)
        self.messages = asyncio.Queue()
        self.presences = asyncio.Queue()
        self.carbons = asyncio.Queue()
        self.started = asyncio.get_running_loop().create_future()
        self.add_event_handler("session_start", self.on_start)
        self.resumptions = asyncio.Queue()
        self.add_event_handler("session_resumed", self.resumptions.put_nowait)
        self.add_event_handler("failed_all_auth", self.on_failure)
        self.add_event_handler("ssl_invalid_chain", self.on_failure)
        self.add_event_handler("message", self.messages.put_nowait)
        self.add_event_handler("presence", self.presences.put_nowait)
        self.add_event_handler("carbon_received", self.carbons.put_nowait)
        self.add_event_handler("carbon_sent", self.carbons.put_nowait)

    def on_start(self, _):
        if not self.started.done():
            self.started.set_result(None)

    def on_failure(self, why):
        if not self.started.done():
            self.started.set_exception(RuntimeError(f"{self.boundjid}: {why}"))

    async def begin(self):
        self.connect(*self.address)
        await asyncio.wait_for(self.started, WAIT)
        tls = self.transport.get_extra_info("ssl_object")
        assert tls is not None and tls.context.verify_mode == ssl.CERT_REQUIRED, "TLS is not verified"
        assert self.plugin["xep_0198"].enabled_out, "no stream management"
        await asyncio.wait_for(self.get_roster(), WAIT)

    async def break_off(self):
        """Loses the connection without a word."""
        gone = asyncio.get_running_loop().create_future()
        self.add_event_handler("disconnected", gone.set_result, disposable=True)
        self.abort()
        await asyncio.wait_for(gone, WAIT)

    async def resume(self):
        bound = self.boundjid.full
        self.connect(*self.address)
        await asyncio.wait_for(self.resumptions.get(), WAIT)
        assert self.boundjid.full == bound, self.boundjid

    async def message(self):
        return await asyncio.wait_for(self.messages.get(), WAIT)

    async def presence(self, sender, kind):
        while True:
            presence = await asyncio.wait_for(self.presences.get(), WAIT)
            if presence["from"] == sender and presence["type"] == kind:
                return presence

    def say(self, to, body):
        self.send_message(mto=to, mbody=body, mtype="chat")
        print(f"sent: {body}", flush=True)


async def expect(person, sender, body):
    message = await person.message()
    assert message["from"] == sender, message
    assert message["body"] == body, message
    ids = message.xml.findall("{urn:xmpp:sid:0}stanza-id")
    assert [i.get("by") for i in ids] == [person.boundjid.bare], message
    return message


async def chat(options):
    domain = options.domain
    first = (domain, options.first, options.first_authority)
    second = (domain, options.second, options.second_authority)
    alice = Person("alice", "phone", *first)
    bob = Person("bob", "desk", *second)
    await alice.begin()
    await bob.begin()

    for person, other in ((alice, bob), (bob, alice)):
        item = person.client_roster[other.boundjid.bare]
        assert item["subscription"] == "both", item

    alice.send_presence(pstatus="here", ppriority=1)
    bob.send_presence(pshow="away")
    seen = await alice.presence(bob.boundjid, "away")
    assert seen["show"] == "away"
    seen = await bob.presence(alice.boundjid, "available")
    assert seen["status"] == "here"

    alice.say(bob.boundjid.bare, "good morning")
    await expect(bob, alice.boundjid, "good morning")
    bob.say(alice.boundjid, "good morning to you, \u00e4\u20ac\U0001f642")
    await expect(alice, bob.boundjid, "good morning to you, \u00e4\u20ac\U0001f642")

    # A second device with carbons.
    tablet = Person("bob", "tablet", *first)
    await tablet.begin()
    await asyncio.wait_for(tablet.plugin["xep_0280"].enable(), WAIT)
    tablet.send_presence()
    await alice.presence(tablet.boundjid, "available")
    alice.say(bob.boundjid, "for the desk")
    await expect(bob, alice.boundjid, "for the desk")
    carbon = await asyncio.wait_for(tablet.carbons.get(), WAIT)
    inner = carbon["carbon_received"]
    assert (inner["from"], inner["body"]) == (alice.boundjid, "for the desk"), carbon
    bob.say(alice.boundjid.bare, "from the desk")
    await expect(alice, bob.boundjid, "from the desk")
    carbon = await asyncio.wait_for(tablet.carbons.get(), WAIT)
    assert carbon["carbon_sent"]["body"] == "from the desk", carbon

    # What the server and the other say of themselves.
    await asyncio.wait_for(alice.plugin["xep_0199"].ping(domain), WAIT)
    await asyncio.wait_for(alice.plugin["xep_0199"].ping(bob.boundjid), WAIT)
    version = await asyncio.wait_for(alice.plugin["xep_0092"].get_version(domain), WAIT)
    assert version["software_version"]["name"] == "Chancery", version
    info = await asyncio.wait_for(alice.plugin["xep_0030"].get_info(jid=domain), WAIT)
    assert "urn:xmpp:ping" in info["disco_info"]["features"], info

    # Away, and back: what came meanwhile.
    # slixmpp does not acknowledge at its end by itself; what is not comes again.
    tablet.plugin["xep_0198"].send_ack()
    bob.plugin["xep_0198"].send_ack()
    await tablet.disconnect()
    await bob.disconnect()
    await alice.presence(bob.boundjid, "unavailable")
    alice.say(bob.boundjid.bare, "while you were away")
    back = Person("bob", "desk", *second)
    await back.begin()
    back.send_presence()
    message = await expect(back, alice.boundjid, "while you were away")
    assert message.xml.find("{urn:xmpp:delay}delay") is not None, message
    # The connection breaks; the session does not.
    await back.break_off()
    alice.say(bob.boundjid.bare, "while you had no connection")
    alice.say(back.boundjid, "and one more")
    await asyncio.wait_for(alice.plugin["xep_0199"].ping(domain), WAIT)
    await back.resume()
    for body in ("while you had no connection", "and one more"):
        message = await expect(back, alice.boundjid, body)
        assert message.xml.find("{urn:xmpp:delay}delay") is None, message
    back.say(alice.boundjid, "here again")
    await expect(alice, back.boundjid, "here again")
    sm = alice.plugin["xep_0198"]
    sm.request_ack()
    for _ in range(WAIT * 10):
        if not sm.unacked_queue:
            break
        await asyncio.sleep(0.1)
    assert not sm.unacked_queue, "not everything was acknowledged"
    await back.disconnect()
    await alice.disconnect()
    print("all well", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("domain", "first", "first-authority", "second", "second-authority"):
        parser.add_argument(f"--{name}", required=True)
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(chat(parser.parse_args()))


if __name__ == "__main__":
    main()
