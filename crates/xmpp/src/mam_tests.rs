//! Tables of queries and preferences, right and wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;

const TYPE: &str = "<field var='FORM_TYPE'><value>urn:xmpp:mam:2</value></field>";

fn query(inner: &str) -> Result<Query, Condition> {
    let xml = format!("<query xmlns='urn:xmpp:mam:2' queryid='q'>{inner}</query>");
    Query::read(&xml.parse().unwrap()).map_err(|error| error.condition)
}

fn fields(inner: &str) -> Result<Query, Condition> {
    query(&format!(
        "<x xmlns='jabber:x:data' type='submit'>{TYPE}{inner}</x>"
    ))
}

fn field(name: &str, value: &str) -> Result<Query, Condition> {
    fields(&format!(
        "<field var='{name}'><value>{value}</value></field>"
    ))
}

#[test]
fn everything_that_may_be_asked_is_read() {
    let all = query(&format!(
        "<x xmlns='jabber:x:data' type='submit'>{TYPE}\
         <field var='with'><value>Bob@X.test/R</value></field>\
         <field var='start'><value>1970-01-01T00:00:01Z</value></field>\
         <field var='end'><value>1970-01-01T00:00:02Z</value></field>\
         <field var='after-id'><value>a</value></field>\
         <field var='before-id'><value>b</value></field>\
         <field var='ids'><value>c</value><value>d</value></field>\
         <field var='include-groupchat'><value>true</value></field></x>\
         <set xmlns='http://jabber.org/protocol/rsm'><max>5</max><before/></set><flip-page/>"
    ))
    .unwrap();
    let expected = Query {
        queryid: Some("q".into()),
        with: Some("bob@x.test/R".parse().unwrap()),
        start_ms: Some(1_000),
        end_ms: Some(2_000),
        after_id: Some("a".into()),
        before_id: Some("b".into()),
        ids: vec!["c".into(), "d".into()],
        include_groupchat: Some(true),
        flip_page: true,
        page: rsm::Request {
            max: Some(5),
            before: Some(String::new()),
            ..rsm::Request::default()
        },
    };
    assert_eq!(all, expected);
    let nothing = Query {
        queryid: Some("q".into()),
        ..Query::default()
    };
    assert_eq!(query(""), Ok(nothing.clone()));
    assert_eq!(field("with", ""), Ok(nothing));
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let rsm = |inner: &str| format!("<set xmlns='http://jabber.org/protocol/rsm'>{inner}</set>");
    let form = format!("<x xmlns='jabber:x:data' type='submit'>{TYPE}</x>");
    let long = "i".repeat(ID_BYTES_MAX + 1);
    for (got, expected) in [
        (
            field("start", "99999-01-01T00:00:00Z"),
            Condition::BadRequest,
        ),
        (field("end", "yesterday"), Condition::BadRequest),
        (field("with", "@"), Condition::JidMalformed),
        (field("include-groupchat", "maybe"), Condition::BadRequest),
        (
            field("{http://x}text", "t"),
            Condition::FeatureNotImplemented,
        ),
        (field("after-id", &long), Condition::ItemNotFound),
        (field("ids", &long), Condition::ItemNotFound),
        (
            fields("<field var='with'><value>a@b</value><value>c@d</value></field>"),
            Condition::BadRequest,
        ),
        (
            fields(&format!(
                "<field var='ids'>{}</field>",
                "<value>i</value>".repeat(IDS_MAX + 1)
            )),
            Condition::BadRequest,
        ),
        (
            query("<x xmlns='jabber:x:data' type='submit'/>"),
            Condition::BadRequest,
        ),
        (query(&format!("{form}{form}")), Condition::BadRequest),
        (query(&rsm("").repeat(2)), Condition::BadRequest),
        (query(&rsm("<max>-1</max>")), Condition::BadRequest),
        (query(&rsm("<max>1e9</max>")), Condition::BadRequest),
        (
            query(&rsm("<index>4</index>")),
            Condition::FeatureNotImplemented,
        ),
        (
            query(&rsm(&format!("<after>{long}</after>"))),
            Condition::ItemNotFound,
        ),
    ] {
        assert_eq!(got, Err(expected));
    }
    let node: Element = "<query xmlns='urn:xmpp:mam:2' node='n'/>".parse().unwrap();
    assert_eq!(
        Query::read(&node).unwrap_err().condition,
        Condition::ItemNotFound
    );
    assert!(query(&rsm("<index>0</index>")).is_ok());
    assert_eq!(
        query(&rsm("<max>4294967295</max>")).unwrap().page.max,
        Some(u32::MAX)
    );
}

#[test]
fn the_form_names_what_is_read() {
    let form: Element = form().parse().unwrap();
    let x = form.get_child("x", ns::DATA_FORMS).unwrap();
    let mut names = 0;
    for child in x
        .children()
        .filter(|child| child.attr("type") != Some("hidden"))
    {
        let name = child.attr("var").unwrap();
        assert_ne!(
            field(name, ""),
            Err(Condition::FeatureNotImplemented),
            "{name}"
        );
        assert!(child.get_child("required", ns::DATA_FORMS).is_none());
        names += 1;
    }
    assert_eq!(names, 7);
}

#[test]
fn a_result_wraps_the_message_as_it_is() {
    let found = Found {
        from: "a@x",
        to: "a@x/r",
        queryid: Some("'"),
        id: "i",
        stamp: "2026-01-01T00:00:00.000Z",
        message: b"<message xmlns='jabber:client'><body>b</body></message>",
    };
    assert_eq!(
        std::str::from_utf8(&found.write()).unwrap(),
        "<message from='a@x' to='a@x/r'><result xmlns='urn:xmpp:mam:2' queryid='&apos;' id='i'>\
         <forwarded xmlns='urn:xmpp:forward:0'>\
         <delay xmlns='urn:xmpp:delay' stamp='2026-01-01T00:00:00.000Z'/>\
         <message xmlns='jabber:client'><body>b</body></message></forwarded></result></message>"
    );
    let page = Page {
        count: Some(0),
        ..Page::default()
    };
    assert_eq!(
        fin(true, &page),
        "<fin xmlns='urn:xmpp:mam:2' complete='true'>\
         <set xmlns='http://jabber.org/protocol/rsm'><count>0</count></set></fin>"
    );
    assert_eq!(
        metadata(None),
        "<metadata xmlns='urn:xmpp:mam:2'></metadata>"
    );
    assert_eq!(
        metadata(Some([("a", "s"), ("b", "t")])),
        "<metadata xmlns='urn:xmpp:mam:2'><start id='a' timestamp='s'/>\
         <end id='b' timestamp='t'/></metadata>"
    );
}

#[test]
fn preferences_are_read_and_written() {
    let read = |attr: &str, inner: &str| {
        let xml = format!("<prefs xmlns='urn:xmpp:mam:2' {attr}>{inner}</prefs>");
        Preferences::read(&xml.parse().unwrap()).map_err(|error| error.condition)
    };
    let got = read(
        "default='never'",
        "<always><jid>Bob@X.test</jid></always><never><jid> c@x.test/r </jid></never>",
    );
    let expected = Preferences {
        default: Fallback::Never,
        always: vec!["bob@x.test".parse().unwrap()],
        never: vec!["c@x.test/r".parse().unwrap()],
    };
    assert_eq!(got, Ok(expected));
    assert!(read("default='roster'", "").is_ok());
    assert_eq!(read("", ""), Err(Condition::BadRequest));
    assert_eq!(read("default='some'", ""), Err(Condition::BadRequest));
    let malformed = read("default='always'", "<always><jid>@</jid></always>");
    assert_eq!(malformed, Err(Condition::JidMalformed));
    assert_eq!(
        preferences("never", &["a@x".into()], &[]),
        "<prefs xmlns='urn:xmpp:mam:2' default='never'><always><jid>a@x</jid></always>\
         <never></never></prefs>"
    );
}

#[test]
fn preferences_are_bounded() {
    let prefs = |count: usize| {
        let jids: String = (0..count).map(|n| format!("<jid>a{n}@x</jid>")).collect();
        let xml =
            format!("<prefs xmlns='urn:xmpp:mam:2' default='always'><never>{jids}</never></prefs>");
        Preferences::read(&xml.parse().unwrap()).map(|prefs| prefs.never.len())
    };
    assert_eq!(prefs(1_000), Ok(1_000));
    let over = prefs(1_001).map_err(|error| error.condition);
    assert_eq!(over, Err(Condition::BadRequest));
}
