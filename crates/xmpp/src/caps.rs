//! The verification string of entity capabilities (XEP-0115 §5).
//!
//! Refuses to bring its own hash function: the caller passes SHA-1.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// XEP-0030 §3.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity<'a> {
    pub category: &'a str,
    pub type_: &'a str,
    pub lang: &'a str,
    pub name: &'a str,
}

/// An extension form (XEP-0128).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Form<'a> {
    /// Value of the field FORM_TYPE.
    pub form_type: &'a str,
    /// The other fields: name and values.
    pub fields: Vec<(&'a str, Vec<&'a str>)>,
}

/// The input of the hash (XEP-0115 §5.1, steps 1 to 7).
pub fn input(identities: &[Identity<'_>], features: &[&str], forms: &[Form<'_>]) -> String {
    let mut out = String::new();
    let mut identities = identities.to_vec();
    identities.sort_unstable();
    for identity in identities {
        for (at, part) in [
            identity.category,
            identity.type_,
            identity.lang,
            identity.name,
        ]
        .iter()
        .enumerate()
        {
            if at > 0 {
                out.push('/');
            }
            push(&mut out, part);
        }
        out.push('<');
    }
    let mut features = features.to_vec();
    features.sort_unstable();
    features.dedup();
    for feature in features {
        push(&mut out, feature);
        out.push('<');
    }
    let mut forms = forms.to_vec();
    forms.sort_unstable();
    for mut form in forms {
        push(&mut out, form.form_type);
        out.push('<');
        form.fields.sort_unstable();
        for (name, mut values) in form.fields {
            push(&mut out, name);
            out.push('<');
            values.sort_unstable();
            for value in values {
                push(&mut out, value);
                out.push('<');
            }
        }
    }
    out
}

/// The `ver` of these capabilities.
pub fn verification(
    identities: &[Identity<'_>],
    features: &[&str],
    forms: &[Form<'_>],
    sha1: &dyn Fn(&[u8]) -> [u8; 20],
) -> String {
    STANDARD.encode(sha1(input(identities, features, forms).as_bytes()))
}

/// XEP-0115 §5.1: a `<` inside a part would let two different sets look the same.
fn push(out: &mut String, part: &str) {
    out.push_str(&part.replace('<', "&lt;"));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SHA-1, for the examples of the standard only.
    fn sha1(data: &[u8]) -> [u8; 20] {
        let mut state: [u32; 5] = [0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0];
        let mut message = data.to_vec();
        message.push(0x80);
        while message.len() % 64 != 56 {
            message.push(0);
        }
        message.extend_from_slice(&(data.len() as u64 * 8).to_be_bytes());
        for block in message.chunks(64) {
            let mut w: Vec<u32> = block
                .chunks(4)
                .map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
                .collect();
            for i in 16..80 {
                w.push((w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16]).rotate_left(1));
            }
            let [mut a, mut b, mut c, mut d, mut e] = state;
            for (i, word) in w.iter().enumerate() {
                let (f, k) = match i / 20 {
                    0 => ((b & c) | (!b & d), 0x5a827999),
                    1 => (b ^ c ^ d, 0x6ed9eba1),
                    2 => ((b & c) | (b & d) | (c & d), 0x8f1bbcdc),
                    _ => (b ^ c ^ d, 0xca62c1d6u32),
                };
                let next = a
                    .rotate_left(5)
                    .wrapping_add(f)
                    .wrapping_add(e)
                    .wrapping_add(k)
                    .wrapping_add(*word);
                (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
            }
            for (sum, add) in state.iter_mut().zip([a, b, c, d, e]) {
                *sum = sum.wrapping_add(add);
            }
        }
        let mut out = [0; 20];
        for (out, word) in out.chunks_mut(4).zip(state) {
            out.copy_from_slice(&word.to_be_bytes());
        }
        out
    }

    const FEATURES: [&str; 4] = [
        "http://jabber.org/protocol/muc",
        "http://jabber.org/protocol/disco#items",
        "http://jabber.org/protocol/disco#info",
        "http://jabber.org/protocol/caps",
    ];

    #[test]
    fn the_simple_example() {
        // XEP-0115 §5.2
        let exodus = Identity {
            category: "client",
            type_: "pc",
            lang: "",
            name: "Exodus 0.9.1",
        };
        let ver = verification(&[exodus], &FEATURES, &[], &sha1);
        assert_eq!(ver, "QgayPKawpkPSDYmwT/WM94uAlu0=");
    }

    #[test]
    fn the_complex_example() {
        // XEP-0115 §5.3
        let identity = |lang, name| Identity {
            category: "client",
            type_: "pc",
            lang,
            name,
        };
        let form = Form {
            form_type: "urn:xmpp:dataforms:softwareinfo",
            fields: vec![
                ("ip_version", vec!["ipv6", "ipv4"]),
                ("os", vec!["Mac"]),
                ("os_version", vec!["10.5.1"]),
                ("software", vec!["Psi"]),
                ("software_version", vec!["0.11"]),
            ],
        };
        let identities = [identity("el", "\u{3a8} 0.11"), identity("en", "Psi 0.11")];
        let ver = verification(&identities, &FEATURES, &[form], &sha1);
        assert_eq!(ver, "q07IKJEyjvHSyhy//CH0CxmKi8w=");
    }

    #[test]
    fn order_and_markup_do_not_matter() {
        assert_eq!(input(&[], &["b", "a", "b"], &[]), "a<b<");
        assert_ne!(input(&[], &["a<b"], &[]), input(&[], &["a", "b"], &[]));
    }
}
