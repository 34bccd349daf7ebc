//! From TOML to a checked policy. Owns the file's grammar and every complaint about it, each with its
//! line; it refuses to stop at the first. Names that only the directory can know are looked up when
//! facts are at hand.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use chancery_api::policy::Problem;
use jid::BareJid;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::facts::Facts;
use crate::file::{
    Action, Direction, FILE_BYTES, GROUPS_LIMIT, GroupRef, Kinds, Member, NAME_BYTES, PolicyFile,
    RULES_LIMIT, Rule, Selector, TEXT_BYTES, WALLS_LIMIT, Wall, WallKind,
};
use crate::problems::{Problems, did_you_mean};

const TOP_KEYS: &[&str] = &["default", "groups", "wall", "rule"];
const WALL_KEYS: &[&str] = &["name", "between", "direction", "kind", "text"];
const RULE_KEYS: &[&str] = &["name", "from", "to", "action", "kinds", "text"];
const ACTIONS: &[(&str, Action)] = &[("allow", Action::Allow), ("deny", Action::Deny)];
const DIRECTIONS: &[(&str, Direction)] =
    &[("both", Direction::Both), ("forward", Direction::Forward)];
const WALL_KINDS: &[(&str, WallKind)] =
    &[("open", WallKind::Open), ("concealed", WallKind::Concealed)];
const KINDS: &[&str] = &["message", "presence", "iq"];

type Span = Range<usize>;
type Text<'t> = (&'t str, Span);

pub(crate) fn read(text: &str, facts: Option<&Facts>) -> Result<PolicyFile, Vec<Problem>> {
    let mut problems = Problems::new(text);
    if text.len() > FILE_BYTES {
        problems.at(
            &(0..0),
            format!("the file is larger than {FILE_BYTES} bytes"),
        );
        return Err(problems.finish());
    }
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        problems.at(&error.span().unwrap_or_default(), error.message());
    }
    if !problems.is_empty() {
        // What could be recovered of broken TOML is not what its author wrote.
        return Err(problems.finish());
    }
    let mut reader = Reader {
        problems,
        facts,
        local: BTreeSet::new(),
    };
    let policy = reader.policy(document.get_ref());
    if reader.problems.is_empty() {
        Ok(policy)
    } else {
        Err(reader.problems.finish())
    }
}

struct Reader<'a> {
    problems: Problems<'a>,
    facts: Option<&'a Facts>,
    /// Names of the groups that the file has itself.
    local: BTreeSet<String>,
}

impl Reader<'_> {
    fn policy(&mut self, top: &DeTable<'_>) -> PolicyFile {
        self.known_keys(top, TOP_KEYS, "the policy");
        let default = self
            .choice(top, "default", ACTIONS)
            .unwrap_or(Action::Allow);
        let groups = self.groups(top);
        let walls = self.tables(top, "wall", WALLS_LIMIT, Self::wall);
        let rules = self.tables(top, "rule", RULES_LIMIT, Self::rule);
        PolicyFile {
            default,
            groups,
            walls,
            rules,
        }
    }

    fn groups(&mut self, top: &DeTable<'_>) -> BTreeMap<String, Vec<Member>> {
        let mut groups = BTreeMap::new();
        let Some(value) = top.get("groups") else {
            return groups;
        };
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type(value, "groups", "a table of names and members");
            return groups;
        };
        if table.len() > GROUPS_LIMIT {
            self.problems
                .at(&value.span(), format!("more than {GROUPS_LIMIT} groups"));
            return groups;
        }
        for (key, value) in table.iter() {
            let name = key.get_ref().as_ref();
            self.name(&(name, key.span()), "group");
            if name.contains(['@', ':', '*']) {
                let problem = format!("group {name:?} must not contain '@', ':' or '*'");
                self.problems.at(&key.span(), problem);
            }
            if let Some(facts) = self.facts
                && facts
                    .groups
                    .keys()
                    .any(|g| g.group == name && g.domain == facts.default_domain())
            {
                let problem = format!("the directory has a group {name:?} already");
                self.problems.at(&key.span(), problem);
            }
            let mut members = Vec::new();
            for (text, span) in self.strings(value, "members of a group") {
                members.extend(self.member(text, &span));
            }
            self.local.insert(name.to_owned());
            groups.insert(name.to_owned(), members);
        }
        groups
    }

    /// Array of tables under `key`; names are unique in it.
    fn tables<T>(
        &mut self,
        top: &DeTable<'_>,
        key: &str,
        limit: usize,
        read: fn(&mut Self, &DeTable<'_>, &Span) -> Option<T>,
    ) -> Vec<T> {
        let Some(value) = top.get(key) else {
            return Vec::new();
        };
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_type(value, key, &format!("written [[{key}]]"));
            return Vec::new();
        };
        if array.len() > limit {
            self.problems
                .at(&value.span(), format!("more than {limit} of [[{key}]]"));
            return Vec::new();
        }
        let (mut all, mut names) = (Vec::new(), BTreeSet::new());
        for item in array.iter() {
            let Some(table) = item.get_ref().as_table() else {
                self.wrong_type(item, key, &format!("written [[{key}]]"));
                continue;
            };
            if let Some(value) = table.get("name")
                && let Some(name) = value.get_ref().as_str()
                && !names.insert(name)
            {
                self.problems
                    .at(&value.span(), format!("a second {key} named {name:?}"));
            }
            all.extend(read(self, table, &item.span()));
        }
        all
    }

    fn wall(&mut self, table: &DeTable<'_>, span: &Span) -> Option<Wall> {
        self.known_keys(table, WALL_KEYS, "a wall");
        let name = self.required_name(table, span, "wall");
        let sides = self.required(table, "between", span, "wall").map(|value| {
            let sides = self.strings(value, "between");
            if sides.len() != 2 {
                let problem = format!("a wall is between two groups, not {}", sides.len());
                self.problems.at(&value.span(), problem);
            }
            let mut refs = Vec::new();
            for (text, span) in &sides {
                let text = text.strip_prefix("group:").unwrap_or(text);
                refs.extend(self.group(text, span));
            }
            refs
        });
        let direction = self
            .choice(table, "direction", DIRECTIONS)
            .unwrap_or(Direction::Both);
        let kind = self
            .choice(table, "kind", WALL_KINDS)
            .unwrap_or(WallKind::Open);
        let text = self.author_text(table);
        let [first, second] = <[GroupRef; 2]>::try_from(sides?).ok()?;
        Some(Wall {
            name: name?,
            first,
            second,
            direction,
            kind,
            text,
        })
    }

    fn rule(&mut self, table: &DeTable<'_>, span: &Span) -> Option<Rule> {
        self.known_keys(table, RULE_KEYS, "a rule");
        let name = self.required_name(table, span, "rule");
        let from = self.selectors(table, "from", span);
        let to = self.selectors(table, "to", span);
        let action = self
            .required(table, "action", span, "rule")
            .and_then(|_| self.choice(table, "action", ACTIONS));
        let kinds = self.kinds(table);
        let text = self.author_text(table);
        if action == Some(Action::Allow)
            && let Some(value) = table.get("text")
        {
            self.problems.at(
                &value.span(),
                "the text of a rule that allows is never shown",
            );
        }
        Some(Rule {
            name: name?,
            from: from?,
            to: to?,
            action: action?,
            kinds,
            text,
        })
    }

    fn selectors(&mut self, table: &DeTable<'_>, key: &str, span: &Span) -> Option<Vec<Selector>> {
        let value = self.required(table, key, span, "rule")?;
        let texts = self.strings(value, key);
        if value
            .get_ref()
            .as_array()
            .is_some_and(|array| array.is_empty())
        {
            self.problems
                .at(&value.span(), format!("{key:?} names nobody"));
        }
        Some(
            texts
                .iter()
                .filter_map(|(text, span)| self.selector(text, span))
                .collect(),
        )
    }

    fn selector(&mut self, text: &str, span: &Span) -> Option<Selector> {
        if text == "*" {
            return Some(Selector::Anybody);
        }
        if let Some(group) = text.strip_prefix("group:") {
            return self.group(group, span).map(Selector::Group);
        }
        if text.starts_with("domain:") || text.contains('@') {
            return self.member(text, span).map(|member| match member {
                Member::Account(jid) => Selector::Account(jid),
                Member::Domain(domain) => Selector::Domain(domain),
            });
        }
        self.group(text, span).map(Selector::Group)
    }

    fn kinds(&mut self, table: &DeTable<'_>) -> Kinds {
        let Some(value) = table.get("kinds") else {
            return Kinds::ALL;
        };
        let mut kinds = Kinds {
            message: false,
            presence: false,
            iq: false,
        };
        let texts = self.strings(value, "kinds");
        if value
            .get_ref()
            .as_array()
            .is_some_and(|array| array.is_empty())
        {
            self.problems
                .at(&value.span(), "\"kinds\" names no kind of stanza");
        }
        for (text, span) in texts {
            match text {
                "message" => kinds.message = true,
                "presence" => kinds.presence = true,
                "iq" => kinds.iq = true,
                other => {
                    let near = did_you_mean(other, KINDS.iter().copied());
                    let problem = format!("{other:?} is not one of {}{near}", KINDS.join(", "));
                    self.problems.at(&span, problem);
                }
            }
        }
        kinds
    }

    /// A group by name: the file's own, else the directory's.
    fn group(&mut self, text: &str, span: &Span) -> Option<GroupRef> {
        if self.local.contains(text) {
            return Some(GroupRef::Policy(text.to_owned()));
        }
        let (group, domain) = match text.rsplit_once('@') {
            Some((group, domain)) => (group, Some(self.domain(domain, span)?)),
            None => (text, None),
        };
        if group.is_empty() {
            self.problems.at(span, "a group without a name");
            return None;
        }
        let reference = GroupRef::Directory {
            domain,
            group: group.to_owned(),
        };
        let Some(facts) = self.facts else {
            return Some(reference);
        };
        let key = reference.key(facts)?;
        if facts.groups.contains_key(&key) {
            return Some(reference);
        }
        let known: Vec<&str> = facts
            .groups
            .keys()
            .filter(|known| known.domain == key.domain)
            .map(|known| known.group.as_str())
            .chain(self.local.iter().map(String::as_str))
            .collect();
        let near = did_you_mean(group, known);
        self.problems
            .at(span, format!("no group {group:?} in {}{near}", key.domain));
        None
    }

    /// A bare JID, or a domain with or without `domain:`.
    fn member(&mut self, text: &str, span: &Span) -> Option<Member> {
        let plain = text.strip_prefix("domain:").unwrap_or(text);
        let jid = match BareJid::new(plain) {
            Ok(jid) => jid,
            Err(error) => {
                self.problems.at(
                    span,
                    format!("{plain:?} is not a bare JID or a domain: {error}"),
                );
                return None;
            }
        };
        let domain = self.domain(jid.domain().as_str(), span)?;
        match jid.node() {
            None => Some(Member::Domain(domain)),
            Some(_) if plain.len() != text.len() => {
                self.problems.at(span, format!("{plain:?} is not a domain"));
                None
            }
            Some(node) => Some(Member::Account(format!("{node}@{domain}"))),
        }
    }

    fn domain(&mut self, text: &str, span: &Span) -> Option<String> {
        let domain = match BareJid::new(text) {
            Ok(jid) if jid.node().is_none() => {
                jid.domain().as_str().trim_end_matches('.').to_lowercase()
            }
            _ => {
                self.problems.at(span, format!("{text:?} is not a domain"));
                return None;
            }
        };
        if let Some(facts) = self.facts
            && !facts.domains.contains(&domain)
        {
            let near = did_you_mean(&domain, facts.domains.iter().map(String::as_str));
            self.problems
                .at(span, format!("domain {domain:?} is not hosted here{near}"));
            return None;
        }
        Some(domain)
    }

    fn required_name(&mut self, table: &DeTable<'_>, span: &Span, of: &str) -> Option<String> {
        let value = self.required(table, "name", span, of)?;
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(value, "name", "a string");
            return None;
        };
        self.name(&(text, value.span()), of);
        Some(text.to_owned())
    }

    fn name(&mut self, (name, span): &Text<'_>, of: &str) {
        let padded = name.trim() != *name;
        if name.is_empty()
            || name.len() > NAME_BYTES
            || padded
            || name.chars().any(char::is_control)
        {
            let problem = format!(
                "the name of a {of} is 1 to {NAME_BYTES} bytes without control characters or \
                 spaces around it"
            );
            self.problems.at(span, problem);
        }
    }

    fn author_text(&mut self, table: &DeTable<'_>) -> String {
        let Some(value) = table.get("text") else {
            return String::new();
        };
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(value, "text", "a string");
            return String::new();
        };
        if text.len() > TEXT_BYTES {
            self.problems.at(
                &value.span(),
                format!("the text is longer than {TEXT_BYTES} bytes"),
            );
        }
        // It becomes character data of a stanza: XML 1.0 has no place for these.
        let illegal = |c: char| {
            (c.is_control() && !matches!(c, '\n' | '\t')) || matches!(c, '\u{fffe}' | '\u{ffff}')
        };
        if text.chars().any(illegal) {
            self.problems
                .at(&value.span(), "the text has characters that cannot be sent");
        }
        text.to_owned()
    }

    fn choice<T: Copy>(&mut self, table: &DeTable<'_>, key: &str, of: &[(&str, T)]) -> Option<T> {
        let value = table.get(key)?;
        let names: Vec<&str> = of.iter().map(|(name, _)| *name).collect();
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(value, key, &format!("one of {}", names.join(", ")));
            return None;
        };
        let found = of
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, value)| *value);
        if found.is_none() {
            let near = did_you_mean(text, names.iter().copied());
            let problem = format!("{key} {text:?} is not one of {}{near}", names.join(", "));
            self.problems.at(&value.span(), problem);
        }
        found
    }

    /// A string, or an array of strings.
    fn strings<'t>(&mut self, value: &'t Spanned<DeValue<'_>>, what: &str) -> Vec<Text<'t>> {
        match value.get_ref() {
            DeValue::String(text) => vec![(text.as_ref(), value.span())],
            DeValue::Array(array) => {
                let mut texts = Vec::with_capacity(array.len());
                for item in array.iter() {
                    match item.get_ref().as_str() {
                        Some(text) => texts.push((text, item.span())),
                        None => self.wrong_type(item, what, "a string"),
                    }
                }
                texts
            }
            _ => {
                self.wrong_type(value, what, "a string or an array of strings");
                Vec::new()
            }
        }
    }

    fn required<'t, 'i>(
        &mut self,
        table: &'t DeTable<'i>,
        key: &str,
        span: &Span,
        of: &str,
    ) -> Option<&'t Spanned<DeValue<'i>>> {
        let value = table.get(key);
        if value.is_none() {
            self.problems.at(span, format!("a {of} needs {key:?}"));
        }
        value
    }

    fn known_keys(&mut self, table: &DeTable<'_>, known: &[&str], of: &str) {
        for key in table.keys() {
            let name = key.get_ref().as_ref();
            if !known.contains(&name) {
                let near = did_you_mean(name, known.iter().copied());
                self.problems
                    .at(&key.span(), format!("unknown key {name:?} in {of}{near}"));
            }
        }
    }

    fn wrong_type(&mut self, value: &Spanned<DeValue<'_>>, what: &str, wanted: &str) {
        let got = value.get_ref().type_str();
        self.problems.at(
            &value.span(),
            format!("{what} must be {wanted}, not of type {got}"),
        );
    }
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
