// Two people with @xmpp/client: login over verified TLS, roster, the handshake of a subscription, messages, a second
// device with carbons, XEP-0198 with resumption, and the history on a third device.
//
// Prints `sent: BODY` for every message, and `all well` at the end. Any difference is an exception.
// Called as `node chat.mjs CLIENT DOMAIN FIRST SECOND`; CLIENT is the directory of the installed package.

import assert from "node:assert/strict";
import { pathToFileURL } from "node:url";

const [installed, domain, first, second] = process.argv.slice(2);
const { client, xml } = await import(pathToFileURL(`${installed}/index.js`));
const WAIT_MS = 30_000;
const SM = "urn:xmpp:sm:3";

class Person {
  constructor(name, resource, address) {
    this.bare = `${name}@${domain}`;
    this.full = `${this.bare}/${resource}`;
    this.xmpp = client({
      service: `xmpp://${address}`,
      domain,
      timeout: WAIT_MS,
      resource,
      username: name,
      password: process.env.CHANCERY_PASSWORD,
    });
    this.xmpp.reconnect.delay = 50;
    this.xmpp.iqCallee.set("jabber:iq:roster", "query", () => ({}));
    this.stanzas = [];
    this.waiting = null;
    this.ids = new Set();
    this.xmpp.on("error", (error) => {
      this.error = error;
    });
    this.xmpp.on("stanza", (stanza) => {
      if (stanza.name === "iq" || this.repeated(stanza)) return;
      this.stanzas.push(stanza);
      this.waiting?.();
    });
  }

  // COMPAT(@xmpp/client 0.14.0): it does not count the answers to its own requests (its `iq/caller` takes them before
  // stream management sees them), so after a resumption as many of the last stanzas come again. Messages are read once.
  repeated(stanza) {
    const id = stanza.getChild("stanza-id", "urn:xmpp:sid:0")?.attrs.id;
    const was = id !== undefined && this.ids.has(id);
    this.ids.add(id);
    return was;
  }

  async begin() {
    await this.xmpp.start();
    assert.equal(this.xmpp.jid.toString(), this.full);
    const { socket } = this.xmpp.socket;
    assert.ok(socket.encrypted && socket.authorized, "TLS is not verified");
    await until(() => this.xmpp.streamManagement.enabled, "stream management");
    return this.roster();
  }

  async roster() {
    const query = await this.xmpp.iqCaller.get(xml("query", "jabber:iq:roster"));
    return new Map(query.getChildren("item").map((item) => [item.attrs.jid, item.attrs.subscription]));
  }

  // The first stanza that is so; those before it stay.
  async next(what, is) {
    const until = Date.now() + WAIT_MS;
    for (;;) {
      const at = this.stanzas.findIndex(is);
      if (at >= 0) return this.stanzas.splice(at, 1)[0];
      assert.ok(Date.now() < until, `${this.full}: no ${what} in ${this.stanzas.join("\n")} ${this.error ?? ""}`);
      await new Promise((resolve) => {
        this.waiting = resolve;
        setTimeout(resolve, 1000);
      });
    }
  }

  presence(from, type) {
    return this.next(
      `presence ${type} of ${from}`,
      (s) => s.name === "presence" && s.attrs.from === from && s.attrs.type === type,
    );
  }

  async expect(from, body) {
    const is = (s) => s.name === "message" && s.getChildText("body") !== null;
    const message = await this.next(`message ${body}`, is);
    assert.equal(message.attrs.from, from);
    assert.equal(message.getChildText("body"), body);
    const ids = message.getChildren("stanza-id", "urn:xmpp:sid:0");
    assert.deepEqual(ids.map((id) => id.attrs.by), [this.bare]);
    return message;
  }

  async carbon(direction, body) {
    const carbon = await this.next(
      `carbon ${body}`,
      (s) => s.name === "message" && s.getChild(direction, "urn:xmpp:carbons:2"),
    );
    assert.equal(carbon.attrs.from, this.bare);
    const forwarded = carbon.getChild(direction).getChild("forwarded", "urn:xmpp:forward:0");
    assert.equal(forwarded.getChild("message").getChildText("body"), body);
  }

  async say(to, body) {
    console.log(`sent: ${body}`);
    await this.xmpp.send(xml("message", { to, type: "chat" }, xml("body", {}, body)));
  }

  // One page; gives its bodies, the id to go on from, and whether it was the last.
  async page(max, after) {
    const queryid = crypto.randomUUID();
    const set = xml("set", "http://jabber.org/protocol/rsm", xml("max", {}, String(max)), after && xml("after", {}, after));
    const query = xml("query", { xmlns: "urn:xmpp:mam:2", queryid }, set);
    const answer = await this.xmpp.iqCaller.request(xml("iq", { type: "set" }, query));
    const fin = answer.getChild("fin", "urn:xmpp:mam:2");
    const bodies = [];
    for (;;) {
      const at = this.stanzas.findIndex((s) => s.getChild("result", "urn:xmpp:mam:2")?.attrs.queryid === queryid);
      if (at < 0) break;
      const [result] = this.stanzas.splice(at, 1);
      bodies.push(result.getChild("result").getChild("forwarded").getChild("message").getChildText("body"));
    }
    const last = fin.getChild("set", "http://jabber.org/protocol/rsm")?.getChildText("last");
    return { bodies, last, complete: fin.attrs.complete === "true" };
  }
}

async function until(is, what) {
  const end = Date.now() + WAIT_MS;
  while (!is()) {
    assert.ok(Date.now() < end, what);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

async function handshake(erin, frank) {
  for (const [one, other] of [[erin, frank], [frank, erin]]) {
    await one.xmpp.send(xml("presence", { to: other.bare, type: "subscribe" }));
    await other.presence(one.bare, "subscribe");
    await other.xmpp.send(xml("presence", { to: one.bare, type: "subscribed" }));
    await one.presence(other.bare, "subscribed");
    await one.presence(other.full, undefined);
  }
  assert.equal((await erin.roster()).get(frank.bare), "both");
  assert.equal((await frank.roster()).get(erin.bare), "both");
}

// The connection breaks without a word; the client resumes by itself.
async function resume(erin, frank) {
  const { streamManagement } = erin.xmpp;
  const id = streamManagement.id;
  assert.ok(id, "no id to resume by");
  let resumed = false;
  streamManagement.once("resumed", () => (resumed = true));
  erin.xmpp.reconnect.stop();
  const gone = new Promise((resolve) => erin.xmpp.once("disconnect", resolve));
  erin.xmpp.socket.socket.destroy();
  await gone;
  await frank.say(erin.full, "while you had no connection");
  await frank.say(erin.bare, "and one more");
  await frank.xmpp.iqCaller.request(xml("iq", { type: "get", to: domain }, xml("ping", "urn:xmpp:ping")));
  erin.xmpp.reconnect.start();
  await erin.xmpp.reconnect.reconnect();
  await until(() => resumed, "resumption");
  assert.equal(streamManagement.id, id);
  for (const body of ["while you had no connection", "and one more"]) {
    const message = await erin.expect(frank.full, body);
    assert.equal(message.getChild("delay"), undefined);
  }
  await erin.say(frank.full, "here again");
  await frank.expect(erin.full, "here again");
  await until(() => streamManagement.outbound_q.length === 0, "acknowledgements");
}

async function chat() {
  const erin = new Person("erin", "phone", first);
  const frank = new Person("frank", "desk", second);
  for (const person of [erin, frank]) {
    const roster = await person.begin();
    assert.equal(roster.size, 0);
    await person.xmpp.send(xml("presence"));
    await person.presence(person.full, undefined);
  }
  await handshake(erin, frank);
  await erin.say(frank.bare, "good evening <&>");
  await frank.expect(erin.full, "good evening <&>");
  await frank.say(erin.full, "good evening to you, \u00e4\u20ac\u{1F642}");
  await erin.expect(frank.full, "good evening to you, \u00e4\u20ac\u{1F642}");

  const tablet = new Person("erin", "tablet", second);
  assert.equal((await tablet.begin()).get(frank.bare), "both");
  await tablet.xmpp.iqCaller.set(xml("enable", "urn:xmpp:carbons:2"));
  await tablet.xmpp.send(xml("presence"));
  await frank.presence(tablet.full, undefined);
  await frank.say(erin.full, "for the phone");
  await erin.expect(frank.full, "for the phone");
  await tablet.carbon("received", "for the phone");
  await erin.say(frank.full, "from the phone");
  await frank.expect(erin.full, "from the phone");
  await tablet.carbon("sent", "from the phone");
  await tablet.xmpp.stop();
  await frank.presence(tablet.full, "unavailable");
  await resume(erin, frank);

  const said = [
    "good evening <&>",
    "good evening to you, \u00e4\u20ac\u{1F642}",
    "for the phone",
    "from the phone",
    "while you had no connection",
    "and one more",
    "here again",
  ];
  const laptop = new Person("erin", "laptop", first);
  await laptop.begin();
  const read = [];
  let page = { complete: false };
  while (!page.complete) {
    page = await laptop.page(3, page.last);
    read.push(...page.bodies);
  }
  assert.deepEqual(read, said);
  for (const person of [laptop, erin, frank]) await person.xmpp.stop();
  console.log("all well");
}

await chat();
process.exit(0);
