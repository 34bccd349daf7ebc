//! The roster (RFC 6121 §2): get with versions, set, remove. The roster service owns it and pushes
//! its changes; here it is only read from and written to XML.

use bytes::Bytes;
use chancery_api::roster::{GetRequest, GetResponse, Item, SetRequest, Subscription};
use chancery_xml::{Child, Element, Limits, escape_text, push_attr, scan};
use chancery_xmpp::subscription::Act;
use chancery_xmpp::{Condition, StanzaError, jid, ns};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{Answer, Handler, Manifest, Registrar, Request, Scope, Specification, Verb};
use crate::colleagues::told;
use crate::pipeline::answer;
use crate::pipeline::decide::{Undecided, allows};
use crate::session::identity::Change;
use crate::session::inbox::Event;
use crate::subscription;

/// Groups of one item, and bytes of a name or group.
const GROUPS: usize = 64;
const NAME_BYTES: usize = 1023;

pub(crate) fn manifest() -> Manifest {
    Manifest {
        name: "roster",
        specifications: &[
            Specification {
                name: "RFC 6121 §2",
                version: "",
                status: "complete",
            },
            Specification {
                name: "XEP-0237",
                version: "1.3",
                status: "complete",
            },
        ],
    }
}

pub(crate) fn register(registrar: &mut Registrar) {
    // §2.2: who asks is told of changes from before the answer on.
    let handler = Handler::ask(Verb::Any, run)
        .behind(|request| (!request.is_set()).then_some(Change::Interested));
    registrar.handle(Scope::Account, ns::ROSTER, "query", handler);
    registrar.stream_feature(&format!("<ver xmlns='{}'/>", ns::ROSTER_VERSIONING));
    // §3.4.1
    registrar.stream_feature(&format!("<sub xmlns='{}'/>", ns::PRE_APPROVAL));
}

fn run(request: Request) -> BoxFuture<'static, Answer> {
    if request.is_set() {
        set(request).boxed()
    } else {
        get(request).boxed()
    }
}

async fn get(request: Request) -> Answer {
    let known_version = request
        .payload()
        .and_then(|query| query.attr("ver"))
        .map(str::to_owned);
    let (gateway, identity) = (&request.gateway, &request.identity);
    let circle = gateway.colleagues.of(&identity.account);
    let ask = GetRequest {
        owner: identity.account.to_string(),
        // With colleagues the version stands for them too.
        known_version: known_version.clone().filter(|_| circle.is_empty()),
    };
    let (cx, _span) = request.cx("roster.get");
    let own = gateway.roster.get(&cx, ask).await;
    let own = own.map_err(|error| answer::api_error(&error))?;
    let all = told::whole(gateway, identity, &circle, own.items, request.trace).await;
    let (items, mut told) = all.map_err(|Undecided| answer::outage())?;
    told.begin(&own.version);
    let version = told.version();
    identity.followed.lock().roster = Some(Box::new(told));
    // §2.6.2: an empty `ver` means that nothing is cached, and equals no version.
    let unchanged = known_version.is_some_and(|known| known == version);
    Ok(write(&GetResponse {
        version,
        unchanged,
        items,
    }))
}

async fn set(request: Request) -> Answer {
    let item = request
        .payload()
        .and_then(|query| read(&request.element, query))
        .ok_or_else(|| StanzaError::new(Condition::BadRequest))??;
    let owner = request.identity.account.to_string();
    // §2.3.3: nobody is on the own roster.
    if item.jid == owner {
        return Err(StanzaError::new(Condition::NotAllowed));
    }
    let mut item = item;
    let (gateway, identity) = (&request.gateway, &request.identity);
    let colleague = told::is_colleague(gateway, identity, &item.jid, request.trace).await;
    let colleague = colleague.map_err(|Undecided| answer::outage())?;
    if colleague {
        if item.subscription() == Subscription::Remove {
            return Err(StanzaError::new(Condition::NotAllowed));
        }
        let circle = gateway.colleagues.of(&identity.account);
        item.groups
            .retain(|group| !circle.labels(&item.jid).any(|label| label == group));
        item.colleague = true;
    }
    let jid = item.jid.as_str().into();
    // §2.5.2: a removal ends both directions, and the other hears of it if policy allows.
    let verdict = match item.subscription() {
        Subscription::Remove => {
            let pair = (&*request.identity.full, &*item.jid);
            Some(subscription::ask(&request.gateway, pair, Act::Unsubscribe, request.trace).await?)
        }
        _ => None,
    };
    let ask = SetRequest {
        owner,
        item: Some(item),
        heard: verdict.as_ref().is_some_and(allows),
        policy_version: verdict.map_or(0, |verdict| verdict.policy_version),
    };
    let (cx, _span) = request.cx("roster.set");
    let set = gateway.roster.set(&cx, ask).await;
    let set = set.map_err(|error| answer::api_error(&error))?;
    if colleague && !set.changed {
        // Nothing is kept of it, but the client may have taken out what stays.
        let push = Event::RosterItem(jid);
        gateway.sessions.push(identity.number, push);
    }
    // What it answers is in the push.
    identity.followed.lock().roster_changed();
    Ok(String::new())
}

/// The item of a set: exactly one (§2.3.3). `None` when that is not what is there.
fn read(element: &Element, query: &Child) -> Option<Result<Item, StanzaError>> {
    let bytes = Bytes::copy_from_slice(element.child_bytes(query));
    let query = scan(&bytes, &Limits::after_auth()).ok()?;
    let [child] = &query.header.children[..] else {
        return None;
    };
    if !child.is("item", ns::ROSTER) {
        return None;
    }
    let Ok(jid) = jid::parse_bare(child.attr("jid")?) else {
        return Some(Err(StanzaError::new(Condition::JidMalformed)));
    };
    let removal = child.attr("subscription") == Some("remove");
    let mut groups: Vec<String> = Vec::new();
    for group in child
        .children
        .iter()
        .filter(|group| group.is("group", ns::ROSTER))
    {
        let group = query.child_text(group);
        // §2.3.3: neither twice, nor empty, nor too long.
        if groups.contains(&group) {
            return None;
        }
        if group.is_empty() || group.len() > NAME_BYTES || groups.len() == GROUPS {
            return Some(Err(StanzaError::new(Condition::NotAcceptable)));
        }
        groups.push(group);
    }
    let name = child.attr("name").unwrap_or_default().to_owned();
    if name.len() > NAME_BYTES {
        return Some(Err(StanzaError::new(Condition::NotAcceptable)));
    }
    // §2.1.2.5: any other value of a client is ignored.
    let subscription = if removal {
        Subscription::Remove
    } else {
        Subscription::Unspecified
    };
    Some(Ok(Item {
        jid: jid.to_string(),
        name,
        subscription: subscription.into(),
        groups,
        ..Item::default()
    }))
}

fn write(roster: &GetResponse) -> String {
    // §2.6.3: an empty result says that the client's copy is current.
    if roster.unchanged {
        return String::new();
    }
    let mut out = String::with_capacity(128 + roster.items.len() * 96);
    out.push_str("<query");
    push_attr(&mut out, "xmlns", ns::ROSTER);
    if !roster.version.is_empty() {
        push_attr(&mut out, "ver", &roster.version);
    }
    out.push('>');
    for item in &roster.items {
        write_item(&mut out, item);
    }
    out.push_str("</query>");
    out
}

/// An item as it is written; a removed one says only that.
pub(crate) fn write_item(out: &mut String, item: &Item) {
    out.push_str("<item");
    push_attr(out, "jid", &item.jid);
    if item.subscription() == Subscription::Remove {
        out.push_str(" subscription='remove'/>");
        return;
    }
    if !item.name.is_empty() {
        push_attr(out, "name", &item.name);
    }
    let subscription = match item.subscription() {
        Subscription::To => "to",
        Subscription::From => "from",
        Subscription::Both => "both",
        Subscription::Remove => "remove",
        Subscription::None | Subscription::Unspecified => "none",
    };
    push_attr(out, "subscription", subscription);
    if item.ask {
        push_attr(out, "ask", "subscribe");
    }
    if item.approved {
        push_attr(out, "approved", "true");
    }
    out.push('>');
    for group in &item.groups {
        out.push_str("<group>");
        escape_text(out, group);
        out.push_str("</group>");
    }
    out.push_str("</item>");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn item(query: &str) -> Option<Result<Item, Condition>> {
        let xml = format!("<iq type='set' id='1'>{query}</iq>");
        let element = scan(&Bytes::from(xml), &Limits::after_auth()).unwrap();
        read(&element, &element.header.children[0]).map(|read| read.map_err(|e| e.condition))
    }

    #[test]
    fn reads_one_item() {
        let read = item(
            "<query xmlns='jabber:iq:roster'><item jid='Bob@a.test' name='B &amp; b' subscription='both' ask='subscribe'><group>Work &lt;1&gt;</group><group>x</group></item></query>",
        );
        let read = read.unwrap().unwrap();
        assert_eq!(read.jid, "bob@a.test");
        assert_eq!(read.name, "B & b");
        assert_eq!(read.groups, ["Work <1>", "x"]);
        // only the server says what the subscription is
        assert_eq!(
            (read.subscription(), read.ask),
            (Subscription::Unspecified, false)
        );
        let removal = item(
            "<query xmlns='jabber:iq:roster'><item jid='bob@a.test' subscription='remove'/></query>",
        );
        assert_eq!(
            removal.unwrap().unwrap().subscription(),
            Subscription::Remove
        );
    }

    #[test]
    fn refuses_what_is_not_one_item() {
        for query in [
            "<query xmlns='jabber:iq:roster'/>",
            "<query xmlns='jabber:iq:roster'><item jid='a@b'/><item jid='c@b'/></query>",
            "<query xmlns='jabber:iq:roster'><item/></query>",
            "<query xmlns='jabber:iq:roster'><item jid='a@b'><group>x</group><group>x</group></item></query>",
        ] {
            assert!(item(query).is_none(), "{query}");
        }
        let malformed = "<query xmlns='jabber:iq:roster'><item jid='@'/></query>";
        assert_eq!(item(malformed), Some(Err(Condition::JidMalformed)));
        let empty = "<query xmlns='jabber:iq:roster'><item jid='a@b'><group/></item></query>";
        assert_eq!(item(empty), Some(Err(Condition::NotAcceptable)));
    }

    #[test]
    fn writes_versions_and_items() {
        let item = Item {
            jid: "b@a.test".into(),
            name: "B'".into(),
            subscription: Subscription::Both.into(),
            groups: vec!["<g>".into()],
            ..Item::default()
        };
        let roster = GetResponse {
            version: "v7".into(),
            unchanged: false,
            items: vec![item],
        };
        let xml = write(&roster);
        assert!(xml.starts_with("<query xmlns='jabber:iq:roster' ver='v7'>"));
        assert!(xml.contains("subscription='both'><group>&lt;g&gt;</group></item>"));
        assert_eq!(
            write(&GetResponse {
                unchanged: true,
                ..roster
            }),
            ""
        );
    }
}
